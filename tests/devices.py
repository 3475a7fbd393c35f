"""The devices that ops are tested on: where there is no GPU, its tests are counted as skipped."""

import pytest
import torch

from detr_fast import _C

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or _C.cuda_version is None,
    reason="needs a CUDA device, and the kernels built",
)
needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2 or _C.cuda_version is None, reason="needs two CUDA devices"
)
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


class NoWait:
    """Within it, any operation of torch that makes the host wait for a GPU is an error."""

    def __enter__(self) -> None:
        self.before = torch.cuda.get_sync_debug_mode()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode(self.before)
