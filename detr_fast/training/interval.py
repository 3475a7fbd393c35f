"""What a line of the log summarises: the steps since the line before."""

from collections.abc import Mapping

import torch
from torch import Tensor

from detr_fast.training import distributed


class LogInterval:
    """Losses of several steps, summed on their device, and the interval's speed.

    Args:
        images, seconds, waited: images trained on, seconds of training and seconds of waiting for
            data, each since the run began, at the interval's start.
    """

    def __init__(self, images: int, seconds: float, waited: float) -> None:
        self._start = images, seconds, waited
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add a step's losses, without waiting for the device."""
        self._steps += 1
        if self._sums:
            torch._foreach_add_(list(self._sums.values()), [losses[name] for name in self._sums])
        else:
            self._sums = {name: value.clone() for name, value in losses.items()}

    def means(self) -> dict[str, float]:
        """Return the losses' means, over all processes. Waits for the device and for them."""
        sums = distributed.mean_over_ranks(self._sums)
        return {name: float(value) / self._steps for name, value in sums.items()}

    def step_seconds(self, seconds: float) -> float:
        """Return the mean seconds of a step."""
        return (seconds - self._start[1]) / self._steps

    def speed(self, images: int, seconds: float, waited: float) -> tuple[float, float]:
        """Return images per second, and the share of the time that was spent waiting for data."""
        then = self._start
        passed = seconds - then[1]
        return (images - then[0]) / passed, (waited - then[2]) / passed
