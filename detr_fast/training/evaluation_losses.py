"""Losses and matching of training on the validation images, to see overfitting."""

import copy
from typing import Any

import torch
from torch import Tensor

from detr_fast import processes
from detr_fast.losses import SetCriterion
from detr_fast.matching import Matches


class EvaluationLosses:
    """The losses of an evaluation's images as of one batch: its batch size does not matter.

    Args:
        criterion: the one used in training, with a ``FastMatcher``.
    """

    def __init__(self, criterion: SetCriterion) -> None:
        self.criterion = copy.deepcopy(criterion)
        # Predictions that are not finite are an error of the detections, which names the image.
        self.criterion.matcher.nonfinite = "last"
        self._sums: Tensor | None = None  # [2, 3, L] float64, as ``sums`` returns them

    def add(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> Matches:
        """Add a batch's outputs of all layers, and return how they were matched.

        Does not wait for their device.
        """
        losses, divisors, matches = self.criterion.sums(outputs, targets)
        sums = torch.stack([losses, divisors]).double()
        self._sums = sums if self._sums is None else self._sums + sums
        return matches

    def finish(self) -> dict[str, float]:
        """Return the losses over all processes on rank 0, named as in training; else nothing.

        Waits for the device and the processes.
        """
        parts = processes.gather(None if self._sums is None else self._sums.cpu())
        parts = [part for part in parts if part is not None]  # of processes that had a batch
        if not parts:
            return {}
        sums, divisors = torch.stack(parts).sum(0)
        # Without any object, 0 / 0 is 0, as in training.
        means = sums / divisors.clamp(min=torch.finfo(divisors.dtype).tiny)
        losses = self.criterion.total_and_parts(*means)
        return {name: float(value) for name, value in losses.items()}
