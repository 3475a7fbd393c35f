"""One optimizer step: forward, match, loss, backward, clip, update. Nothing makes the host wait."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detr_fast.data import Batch, to_device
from detr_fast.matching import PackedTargets, Targets
from detr_fast.precision import autocast
from detr_fast.training import distributed
from detr_fast.training.optimizer import FusedAdamW

BUCKET = 64  # compiled models see heights and widths that are multiples of this


def ignore(phase: str) -> None:
    """Ignore the end of a phase: the default for ``mark``."""


class TrainStep:
    """A training step, which a training loop calls with the step's batches.

    Args:
        model: maps images and mask to outputs; may be compiled, or wrapped for several processes.
        criterion: maps outputs and targets to losses, in float32 whatever the model runs in.
        optimizer: updates the model's parameters.
        device: where the model is.
        amp: autocast type of the model, None for float32.
        clip: largest gradient norm; 0 = no clipping.
        compile: run model and criterion through ``torch.compile``, on targets packed to powers of
            two. Batches of the first size that comes (also the first in a resumed run) run as they
            are, so that training with one size computes the same as without ``compile``. Those of
            other sizes are padded to multiples of 64 pixels, so that code for any size is compiled
            a few times, not once for every size. The mask marks this padding like a batch's own,
            and its effects are those of any padding: on features at an image's border, and on
            statistics of trained batch norm.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: FusedAdamW,
        device: torch.device,
        amp: torch.dtype | None = None,
        clip: float = 0.0,
        compile: bool = False,
    ) -> None:
        self.parallel = model
        self.model = torch.compile(model) if compile else model
        self.criterion = torch.compile(criterion) if compile else criterion
        self.compiled = compile
        self.optimizer = optimizer
        self.device = device
        self.amp = amp
        self.clip = clip
        self._first = True
        self._size: torch.Size | None = None  # H and W of the first batch

    def __call__(
        self, batches: Sequence[Batch], mark: Callable[[str], None] = ignore
    ) -> dict[str, Tensor]:
        """Train on the batches as if they were one, but for padding and trained batch norm.

        Args:
            batches: on the device, or anything that ``data.to_device`` can move there.
            mark: called with each phase's name at its end: forward, loss, backward, optimizer.

        Returns:
            The criterion's losses, detached, as means over the batches, and ``grad_norm`` before
            clipping.
        """
        sums: list[Tensor] = []
        counts = _target_counts(batches, self.device) if len(batches) > 1 else None
        for number, batch in enumerate(batches, 1):
            wait = number < len(batches)
            with distributed.no_sync(self.parallel, wait, self._first):
                losses = self.gradients(batch, counts, len(batches), mark)
            values = list(losses.values())
            sums = torch._foreach_add(sums, values) if sums else values
        if len(batches) > 1:
            means = torch._foreach_div(sums, len(batches))
            losses = dict(zip(losses, means, strict=True))
        self._first = False
        losses["grad_norm"] = self.update()
        mark("optimizer")
        return losses

    def gradients(
        self,
        batch: Batch,
        step_counts: Tensor | None = None,
        batches: int = 1,
        mark: Callable[[str], None] = ignore,
    ) -> dict[str, Tensor]:
        """Add the gradients of a batch, out of several of a step, and return its losses, detached.

        Args:
            step_counts, batches: as for the criterion.
        """
        images, mask, targets = self._ready(*batch)
        with autocast(self.device, self.amp):
            outputs = self.model(images, mask)
        mark("forward")
        losses = self.criterion(outputs, targets, *([step_counts, batches] if batches > 1 else []))
        mark("loss")
        (losses["loss"] / batches).backward()
        mark("backward")
        return {name: value.detach() for name, value in losses.items()}

    def update(self) -> Tensor:
        """Clip the gradients, step and clear them; return their norm before clipping."""
        norm = self.optimizer.clipped_step(self.clip)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _ready(self, images: Tensor, mask: Tensor | None, targets: Targets) -> Batch:
        """Return the batch on the device, padded if compiled; drop a CPU mask without padding."""
        if mask is not None and mask.device.type == "cpu" and not mask.any():
            mask = None
        images, mask, targets = to_device(Batch(images, mask, targets), self.device)
        if self.compiled:
            self._size = self._size or images.shape[2:]
            if images.shape[2:] != self._size:
                images, mask = pad_to_bucket(images, mask)
            targets = pack_to_capacity(targets)
        return Batch(images, mask, targets)


def _target_counts(batches: Sequence[Batch], device: torch.device) -> Tensor:
    """Return the number of targets of every image of all batches, on the device."""
    counts = [
        targets.offsets.diff()
        if isinstance(targets, PackedTargets)
        else torch.tensor([len(target["labels"]) for target in targets])
        for _, _, targets in batches
    ]
    return torch.cat([count.to(device, non_blocking=True) for count in counts])


def pad_to_bucket(
    images: Tensor,  # [B, 3, H, W]
    mask: Tensor | None,  # [B, H, W] bool, True = padding
    bucket: int = BUCKET,
) -> tuple[Tensor, Tensor]:
    """Pad the batch to the next multiples of ``bucket`` in height and width.

    Always returns a mask: with None for some batches, everything would be compiled for both cases.
    """
    *_, h, w = images.shape
    below, right = -h % bucket, -w % bucket
    if mask is None:
        mask = torch.zeros(len(images), h, w, dtype=torch.bool, device=images.device)
    return F.pad(images, (0, right, 0, below)), F.pad(mask, (0, right, 0, below), value=True)


def pack_to_capacity(targets: Targets, capacity: int | None = None) -> PackedTargets:
    """Return the targets packed with a capacity, unchanged if they already have one.

    Args:
        capacity: default: the power of two that holds them, 64 at least.
    """
    if isinstance(targets, PackedTargets):
        if targets.counts is None:  # it has a capacity
            return targets
        targets = targets.unpack()
    if capacity is None:
        total = sum(len(target["labels"]) for target in targets)
        capacity = max(64, 1 << (total - 1).bit_length())
    return PackedTargets.pack(targets, capacity)
