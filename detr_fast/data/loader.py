"""The DataLoader of training and evaluation, and the batches of an evaluation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detr_fast.data.collate import collate
from detr_fast.data.worker import prepare_worker


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
    """Return a DataLoader (with ``options``) whose workers are as ``prepare_worker`` says."""
    return DataLoader(
        dataset,
        num_workers=workers,
        # The cache needs workers that inherit its memory; Python 3.14 starts them differently.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=collate_fn,
        worker_init_fn=prepare_worker,
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
