"""Batches for training: the same ones whatever the number of workers, resumable at any batch."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detr_fast.data import DetectionDataset, Encoded, collate
from detr_fast.data.encoded import collate_encoded, read_encoded
from detr_fast.data.loader import make_loader
from detr_fast.training import distributed


class SeededDataset(Dataset):
    """A data set whose random transforms depend on (seed, epoch, index) alone.

    So a sample does not depend on which worker draws it, nor on what was drawn before, and a run
    resumed in the middle of an epoch sees what the unbroken run would have seen. Its keys are
    ``(epoch, index)``: workers that persist from epoch to epoch need nothing else.

    Args:
        encoded: items are :class:`Encoded`, for a device to decode and transform.
    """

    def __init__(self, dataset: DetectionDataset, seed: int, encoded: bool = False) -> None:
        self.dataset = dataset
        self.seed = seed
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]] | Encoded:
        epoch, index = key
        self.dataset.set_epoch(epoch)
        seed = hash((self.seed, epoch, index))
        if self.encoded:
            return read_encoded(self.dataset, index, seed)
        with torch.random.fork_rng(devices=[]):
            # The CPU's alone: torch.manual_seed would also seed the GPU's, and so dropout.
            torch.default_generator.manual_seed(seed)
            return self.dataset[index]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Shuffled batches of one epoch for one of several processes, starting at any batch.

    The order depends on (seed, epoch), and so do the images in batch k of all processes together.
    The last, incomplete batch is dropped, unless it is the only one; every process gets the same
    number of batches. Yields lists of ``(epoch, index)``.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    @property
    def batches_per_epoch(self) -> int:
        return max(1, self.length // (self.batch_size * self.world_size))

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
        order = torch.randperm(self.length, generator=generator).tolist()
        share = order[self.rank :: self.world_size] or order[:1]
        keys = [(self.epoch, index) for index in share]
        for batch in range(self.first_batch, self.batches_per_epoch):
            yield keys[batch * self.batch_size : (batch + 1) * self.batch_size]


class TrainLoader:
    """Batches of one epoch at a time, with packed targets. Workers persist between epochs.

    Args:
        dataset: what to draw from, with its random transforms.
        batch_size: images per process.
        seed: determines the order and the transforms.
        workers: processes that load; 0: load in this one.
        rank, world_size: this process's number, and the number of processes.
        pin_memory: put batches in page-locked memory, for a GPU.
        pad_to_multiple: H and W of a batch are rounded up to multiples of this.
        encoded: yield lists of :class:`Encoded`, for a :class:`DeviceDecoder`, instead of batches.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        batch_size: int,
        seed: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        pad_to_multiple: int = 1,
        encoded: bool = False,
    ) -> None:
        self.batches = EpochBatches(len(dataset), batch_size, seed, rank, world_size)
        padded = functools.partial(collate, pad_to_multiple=pad_to_multiple, pack=True)
        self.loader = make_loader(
            SeededDataset(dataset, seed, encoded),
            workers,
            collate_fn=collate_encoded if encoded else padded,
            pin_memory=pin_memory and not encoded,  # boxes would lose their type
            batch_sampler=self.batches,
            persistent_workers=workers > 0,
        )

    @property
    def batches_per_epoch(self) -> int:
        return self.batches.batches_per_epoch

    def epoch(self, epoch: int, first_batch: int = 0) -> DataLoader:
        """Return the batches of an epoch, without the first ``first_batch`` of them.

        Iterate over them before the next call.
        """
        self.batches.epoch = epoch
        self.batches.first_batch = first_batch
        return self.loader


def default_workers(device: torch.device) -> int:
    """Return how many processes should load images for this one.

    0 where the step itself runs on the CPU: workers would take its cores, and its threads, which
    wait for each other at every operation, would lose more than the loading gains.
    """
    if device.type == "cpu":
        return 0
    # A scheduler may have given this process fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, max(1, (cores or 1) // distributed.local_world_size() - 1))
