"""A whole training step as one CUDA graph: launched at once, for batches of one shape."""

from collections.abc import Callable

import torch
from torch import Tensor

from detr_fast import _C, faults
from detr_fast.data import Batch
from detr_fast.matching import PackedTargets
from detr_fast.training.config import TrainConfig
from detr_fast.training.step import TrainStep, ignore, pack_to_capacity

WARM_UP = 3  # steps on a side stream before capturing, as torch asks for


def cuda_graph_obstacle(config: TrainConfig, device: torch.device, processes: int) -> str | None:
    """Why a run cannot have its step as a CUDA graph; None where it can."""
    if device.type != "cuda":
        return f"it trains on the {device.type}"
    if _C.cuda_version is None:
        return "detr_fast was built without its CUDA kernels"
    if config.recipe == "detr":
        return "the detr recipe changes image sizes; give --recipe small and --image-size"
    if config.image_size is None and config.data != "shapes":
        return "images differ in size; give --image-size"
    if config.accumulate > 1 or processes > 1 or config.compile or config.checkpointing:
        return (
            "it cannot be combined with --accumulate, --compile, --checkpointing or several "
            "processes"
        )
    return None


class ShapeMismatch(ValueError):
    """A batch of another shape than the graph's."""


class GraphedStep:
    """Captures a :class:`TrainStep` with the first batch, and replays it with every later one.

    The first steps run as they are. Batches have one shape, and a mask if the first one has;
    targets are packed to ``capacity``.

    Args:
        step: whose optimizer is made capturable, with learning rates in tensors.
        capacity: targets of a batch, at most.

    Raises:
        ValueError: where there is no CUDA graph, with the reason.
    """

    def __init__(self, step: TrainStep, capacity: int) -> None:
        if step.device.type != "cuda":
            raise ValueError(f"a CUDA graph needs a GPU, and this is {step.device.type}")
        self.step = step
        self.capacity = capacity
        for group in step.optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=step.device)
        self._side = torch.cuda.Stream(step.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0

    def __call__(self, batch: Batch, mark: Callable[[str], None] = ignore) -> dict[str, Tensor]:
        """Train on a batch. The losses returned are overwritten by the next call.

        Args:
            mark: is called with ``"graph"`` at the end: a graph has no phases to tell apart.

        Raises:
            ShapeMismatch: a batch of another shape than the first, or with a mask and the first
                had none; nothing was changed.
            ValueError: too many targets for the capacity, or what matching has found meanwhile.
        """
        images, mask, targets = batch
        targets = pack_to_capacity(targets, self.capacity)
        if self._steps == 0:
            self._images = images.to(self.step.device, memory_format=torch.channels_last, copy=True)
            self._mask = None if mask is None else mask.to(self.step.device, copy=True)
            self._targets = targets.to(self.step.device, copy=True)
        else:
            self._check_shapes(images, mask)
            if self._graph is not None:
                faults.raise_pending(self.step.device)  # a replay does not ask
            self._fill(images, mask, targets)
        self._steps += 1
        if self._steps <= WARM_UP:
            losses = self._warm_up()
        else:
            if self._graph is None:
                self._capture()
            self._graph.replay()  # capturing runs nothing
            losses = self._losses
        mark("graph")
        return losses

    def _check_shapes(self, images: Tensor, mask: Tensor | None) -> None:
        if images.shape != self._images.shape:
            raise ShapeMismatch(
                f"images are {list(images.shape)}, the CUDA graph's {list(self._images.shape)}"
            )
        if mask is not None and self._mask is None:
            raise ShapeMismatch("images are padded, the CUDA graph's are not")

    def _warm_up(self) -> dict[str, Tensor]:
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            losses = self._run()
        torch.cuda.current_stream().wait_stream(self._side)
        return losses

    def _capture(self) -> None:
        faults.check_faults(self.step.device)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may do what a capture forbids: a loader's page-locks memory.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._losses = self._run()

    def _fill(self, images: Tensor, mask: Tensor | None, targets: PackedTargets) -> None:
        self._images.copy_(images, non_blocking=True)
        if mask is not None:
            self._mask.copy_(mask, non_blocking=True)
        elif self._mask is not None:
            self._mask.zero_()
        self._targets.copy_(targets)

    def _run(self) -> dict[str, Tensor]:
        losses = self.step.gradients((self._images, self._mask, self._targets))
        return losses | {"grad_norm": self.step.update()}
