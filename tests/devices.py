"""Which tests need a GPU: all that carry the marker ``gpu``; without one they count as skipped."""

import pytest
import torch

from detr_fast import _C

needs_cuda = pytest.mark.gpu
needs_two_gpus = pytest.mark.gpu(count=2)
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def why_not_here(count: int = 1) -> str | None:
    """Why tests that need so many GPUs cannot run here; None where they can."""
    if _C.cuda_version is None:
        return "needs a GPU, and a build with CUDA kernels"
    if not torch.cuda.is_available() or torch.cuda.device_count() < count:
        return "needs a GPU" if count == 1 else f"needs {count} GPUs"
    return None


class OnGpu(torch.Tensor):
    """A tensor on the CPU that says it is on a GPU; what is computed from it does not."""

    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl


class NoWait:
    """Within it, any operation of torch that makes the host wait for a GPU is an error."""

    def __enter__(self) -> None:
        self.before = torch.cuda.get_sync_debug_mode()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode(self.before)
