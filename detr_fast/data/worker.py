"""What the processes of a DataLoader do differently from other processes."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.multiprocessing.reductions import reduce_storage

_GRACE = 60  # seconds that a worker lives on after SIGTERM
_BY_VALUE = 64 * 1024  # bytes; from about twice as much on, sharing is faster


def prepare_worker(worker: int) -> None:
    """Let this process leave signals to the main process, and send small tensors by value.

    For ``DataLoader(worker_init_fn=prepare_worker)``.
    """
    # Ctrl-C, and the SIGTERM of a scheduler whose time is up, reach all processes. The main process
    # decides what happens, and needs its workers until the end of the step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_the_end, daemon=True).start()
    ForkingPickler.register(torch.UntypedStorage, _reduce)
    torch.set_num_threads(1)


def _reduce(storage: torch.UntypedStorage) -> tuple[Callable, tuple[Any, ...]]:
    """Return how to send a tensor's memory to the main process.

    torch shares all of it, each tensor over a connection of its own that takes half a millisecond,
    and keeps a file open for it: the targets of a few large batches reach the limit of those.
    """
    small = 0 < storage.nbytes() <= _BY_VALUE
    if not small or storage.device.type != "cpu" or storage.is_shared():
        return reduce_storage(storage)
    content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return _from_bytes, (content.tobytes(),)


def _from_bytes(content: bytes) -> torch.UntypedStorage:
    # A bytearray, since tensors may be written to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()


def _await_the_end() -> None:
    """End this worker when the main process says so; some time after anybody else did.

    In a thread, which also ends a worker that is stuck in a call.
    """
    end = math.inf
    while True:
        left = min(end - time.monotonic(), threading.TIMEOUT_MAX)
        sent = signal.sigtimedwait({signal.SIGTERM}, max(left, 0))
        if time.monotonic() >= end or (sent is not None and sent.si_pid == os.getppid()):
            os._exit(0)
        if sent is not None:
            end = min(end, time.monotonic() + _GRACE)
