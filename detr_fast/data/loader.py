"""The DataLoader of training and evaluation, and the batches of an evaluation."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detr_fast.data.collate import collate

_GRACE = 60  # seconds that a worker lives on after SIGTERM


class EvalBatches(Sampler[list[int]]):
    """The batches of one process in an evaluation: every image in exactly one batch of one process.

    Whole batches are distributed, so that each image is padded as in a single process, and every
    detection is the same. Some processes may get one batch fewer, or none.
    """

    def __init__(self, length: int, batch_size: int, rank: int, world_size: int) -> None:
        starts = range(0, length, batch_size)[rank::world_size]
        self.batches = [list(range(i, min(i + batch_size, length))) for i in starts]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def make_loader(
    dataset: Dataset, workers: int, collate_fn: Callable = collate, **options: Any
) -> DataLoader:
    """Return a DataLoader (with ``options``) whose workers leave signals to the main process."""
    return DataLoader(
        dataset,
        num_workers=workers,
        # The cache needs workers that inherit its memory; Python 3.14 starts them differently.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=collate_fn,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # else it would draw from the generator of training
        **options,
    )


def make_eval_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """Return a loader of one process's batches in an evaluation, see :class:`EvalBatches`."""
    batches = EvalBatches(len(dataset), batch_size, rank, world_size)
    return make_loader(dataset, workers, batch_sampler=batches, pin_memory=pin_memory)


def _leave_signals_to_the_main_process(worker: int) -> None:
    # Ctrl-C, and the SIGTERM of a scheduler whose time is up, reach all processes. The main process
    # decides what happens, and needs its workers until the end of the step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_the_end, daemon=True).start()
    torch.set_num_threads(1)


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
