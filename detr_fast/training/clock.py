"""Where the time of a training step goes, phase by phase, without making the host wait."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

STEP_PHASES = ("forward", "match", "loss", "backward", "optimizer")
PHASES = ("data", *STEP_PHASES, "graph")  # a CUDA graph is a whole step, which cannot be divided


class PhaseClock:
    """Adds up the time of named phases.

    On a GPU phases are bounded by events on the current stream, so that they are the device's time
    and nothing waits before :meth:`stop`; elsewhere by the host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Begin a step."""
        self._marks = [("", self._now())]

    def mark(self, phase: str) -> None:
        """The time since the last mark was that phase's. Phases may come several times."""
        self._marks.append((phase, self._now()))

    def stop(self) -> dict[str, float]:
        """Seconds of each phase since :meth:`start`. Waits for the GPU."""
        seconds: dict[str, float] = defaultdict(float)
        if self.on_gpu:
            torch.cuda.synchronize()
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            seconds[phase] += before.elapsed_time(after) / 1e3 if self.on_gpu else after - before
        return dict(seconds)

    def around(self, call: Callable, phase: str, before: str) -> Callable:
        """``call``, marked as a ``phase``; what came just before it counts as ``before``."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            self.mark(before)
            result = call(*args, **kwargs)
            self.mark(phase)
            return result

        return marked

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
