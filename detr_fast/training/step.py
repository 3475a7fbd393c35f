"""One optimizer step: forward, match, loss, backward, clip, update. Nothing waits for the device."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..packing import PackedTargets
from ..precision import autocast

Targets = Sequence[dict[str, Tensor]] | PackedTargets
Batch = tuple[Tensor, Tensor | None, Targets]  # images [B, 3, H, W], mask [B, H, W], B targets


def _ignore(phase: str) -> None:
    pass


class TrainStep:
    """What a training loop calls with the batches of each step.

    Args:
        model: images and mask to outputs; maybe wrapped for distributed training, or compiled.
        criterion: outputs and targets to losses, in float32 whatever the model runs in.
        optimizer: of the model's parameters.
        device: where the model is.
        amp: autocast type of the model, None for float32.
        clip: largest gradient norm; 0 = no clipping.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        amp: torch.dtype | None = None,
        clip: float = 0.0,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.device = device
        self.amp = amp
        self.clip = clip
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(
        self, batches: Sequence[Batch], mark: Callable[[str], None] = _ignore
    ) -> dict[str, Tensor]:
        """Train on the batches, whose gradients are averaged.

        Args:
            mark: is told the end of each phase: forward, loss, backward, optimizer.

        Returns:
            The criterion's losses of the last batch, detached, and ``grad_norm`` before clipping.
        """
        for images, mask, targets in batches:
            images, mask, targets = self.to_device(images, mask, targets)
            with autocast(self.device, self.amp):
                outputs = self.model(images, mask)
            mark("forward")
            losses = self.criterion(outputs, targets)
            mark("loss")
            (losses["loss"] / len(batches)).backward()
            mark("backward")
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mark("optimizer")
        return {name: value.detach() for name, value in losses.items()} | {"grad_norm": norm}

    def to_device(self, images: Tensor, mask: Tensor | None, targets: Targets) -> Batch:
        """The batch on the device, images in channels-last order; no mask if nothing is padded."""
        if mask is not None and mask.device.type == "cpu" and not mask.any():
            mask = None
        if mask is not None:
            mask = mask.to(self.device, non_blocking=True)
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        if isinstance(targets, PackedTargets):
            return images, mask, targets.to(self.device)
        targets = [
            {key: target[key].to(self.device, non_blocking=True) for key in ("labels", "boxes")}
            for target in targets
        ]
        return images, mask, targets
