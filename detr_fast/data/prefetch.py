"""Batches on their way to the model: copied and normalised while the previous step runs."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from detr_fast.data.collate import Batch
from detr_fast.data.encoded import DeviceDecoder, Encoded
from detr_fast.data.errors import LostWorker, is_connection_lost
from detr_fast.data.transforms import normalize
from detr_fast.matching import PackedTargets


class Prefetcher:
    """Prepares a loader's batches on the device, and measures how long they were waited for.

    On a GPU copying and normalising run on a separate stream, in parallel with the step that was
    queued last. On the CPU each batch is prepared when it is requested.

    Args:
        device: where the model is.
        decoder: makes a batch of what the loader yields, if that is not yet a batch.

    Attributes:
        data_seconds: how long this process has waited for batches so far. Where that is most of
            the time, the loader is the bottleneck; where it is close to zero, the step is.
    """

    def __init__(self, device: torch.device, decoder: DeviceDecoder | None = None) -> None:
        self.device = device
        self.decoder = decoder
        self.data_seconds = 0.0

    def batches(self, loader: Iterable[Batch | list[Encoded]]) -> Iterator[Batch]:
        """Yield the loader's batches as :func:`to_device` returns them.

        Args:
            loader: yields what ``collate`` makes (in page-locked memory, if the device is a GPU and
                nothing should wait for it) or, with a decoder, lists of ``Encoded``.
        """
        source = iter(loader)
        while True:
            started = time.perf_counter()
            # Requested after the caller has queued its step, so the GPU has work meanwhile.
            try:
                batch = next(source, None)
            except (EOFError, ConnectionError) as error:
                # The kernel closes a killed worker's connections, and only then reports its death.
                if is_connection_lost(error):
                    kind = type(error).__name__
                    raise LostWorker(f"DataLoader worker closed its connection ({kind})") from error
                raise
            if batch is not None:
                batch = self._ready(batch)
            self.data_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _ready(self, batch: Batch | list[Encoded]) -> Batch:
        if self.device.type != "cuda":
            return self._on_device(batch)
        side = _side_stream(self.device)
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(side):
            batch = self._on_device(batch)
        current.wait_stream(side)  # the GPU's stream waits, not this process
        for tensor in _tensors(batch):
            # Allocated on the side stream, used on this one: its memory may be reused for a later
            # batch only when the work that will be queued here is done.
            tensor.record_stream(current)
        return batch

    def _on_device(self, batch: Batch | list[Encoded]) -> Batch:
        return to_device(batch if self.decoder is None else self.decoder(batch), self.device)


@functools.cache  # each stream has its own memory pool
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    yield batch.images
    if batch.mask is not None:
        yield batch.mask
    if isinstance(batch.targets, PackedTargets):
        yield batch.targets.buffer  # the other tensors are views of it
    else:
        for target in batch.targets:
            yield target["labels"]
            yield target["boxes"]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on ``device``, its images float32 and normalised.

    From page-locked memory nothing here waits for a GPU. Tensors already there stay as they are.

    Args:
        batch: as :func:`collate` makes it. If the targets are a list, only labels and boxes are
            copied to the device.
    """
    images, mask, targets = batch
    images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
    mask = None if mask is None else mask.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = normalize(images, mask)
    if isinstance(targets, PackedTargets):
        targets = targets.to(device)
    else:
        targets = [
            target | {k: target[k].to(device, non_blocking=True) for k in ("labels", "boxes")}
            for target in targets
        ]
    return Batch(images, mask, targets)
