"""Batches for training: the same ones whatever the number of workers, resumable at any batch."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data import collate


class SeededDataset(Dataset):
    """A data set whose random transforms depend on (seed, epoch, index) alone.

    So a sample does not depend on which worker draws it, nor on what was drawn before, and a run
    resumed in the middle of an epoch sees what the unbroken run would have seen.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, self.epoch, index)))
            return self.dataset[index]


class EpochBatches(Sampler[list[int]]):
    """Shuffled batches of one epoch for one of several processes, from any batch on.

    The order depends on (seed, epoch). The last, incomplete batch is dropped, unless it is the
    only one; every process gets the same number of batches.
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

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
        order = torch.randperm(self.length, generator=generator).tolist()
        share = order[self.rank :: self.world_size] or order[:1]
        for batch in range(self.first_batch, self.batches_per_epoch):
            yield share[batch * self.batch_size : (batch + 1) * self.batch_size]


class TrainLoader:
    """Iterates over (images [B,3,H,W], mask [B,H,W], targets) of one epoch at a time."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = SeededDataset(dataset, seed)
        self.batches = EpochBatches(len(dataset), batch_size, seed, rank, world_size)
        self.workers = workers
        self.pin_memory = pin_memory

    @property
    def batches_per_epoch(self) -> int:
        return self.batches.batches_per_epoch

    def epoch(self, epoch: int, first_batch: int = 0) -> DataLoader:
        """The batches of an epoch, without the first ``first_batch`` of them."""
        self.dataset.set_epoch(epoch)
        self.batches.epoch = epoch
        self.batches.first_batch = first_batch
        return make_loader(
            self.dataset, self.workers, pin_memory=self.pin_memory, batch_sampler=self.batches
        )


def default_workers(device: torch.device) -> int:
    """How many processes should load images for this one.

    None where the step itself runs on the CPU: they would take its cores, and its threads, which
    wait for each other at every operation, lose more than the loading gains.
    """
    if device.type == "cpu":
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return min(8, max(1, (os.cpu_count() or 1) // processes - 1))


def make_loader(dataset: Dataset, workers: int, **options: Any) -> DataLoader:
    """A DataLoader that pads, and whose workers leave Ctrl-C to the main process."""
    return DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_leave_interrupts_alone,
        generator=torch.Generator(),  # else it would draw from the random numbers of training
        **options,
    )


def _leave_interrupts_alone(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
