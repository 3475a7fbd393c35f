"""Ctrl-C and termination signals: a run ends after a step, not in the middle of it."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Within this context the first SIGINT or SIGTERM requests a stop; the second interrupts.

    Outside the main thread, where Python allows no signal handlers, it does nothing.

    Args:
        announce: whether to print on Ctrl-C that the stop is coming.
    """

    def __init__(self, announce: bool) -> None:
        self.announce = announce
        self.requested = False
        self._replaced: dict[int, Any] = {}  # handlers by signal number

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._replaced[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced.clear()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self.announce and number == signal.SIGINT:  # SIGTERM is what torchrun sends
            print(
                "\nstopping after this step or evaluation; press Ctrl-C again to stop at once",
                file=sys.stderr,
            )
