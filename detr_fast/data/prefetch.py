"""Batches on their way to the model: copied and normalised while the step before is computed."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from detr_fast.data.collate import Batch
from detr_fast.data.encoded import DeviceDecoder, Encoded
from detr_fast.data.transforms import normalize
from detr_fast.packing import PackedTargets


class Prefetcher:
    """Makes a loader's batches ready on the device, and measures how long they were waited for.

    On a GPU copying and normalising run on a stream of their own, beside the step that was queued
    last. On the CPU each batch is made ready when it is asked for.

    Args:
        device: where the model is.
        decoder: makes a batch of what the loader yields, if that is not one yet.

    Attributes:
        data_seconds: how long this process has waited for batches so far. Where that is most of
            the time, the loader is the bottleneck; where it is next to nothing, the step is.
    """

    def __init__(self, device: torch.device, decoder: DeviceDecoder | None = None) -> None:
        self.device = device
        self.decoder = decoder
        self.data_seconds = 0.0

    def batches(self, loader: Iterable[Batch | list[Encoded]]) -> Iterator[Batch]:
        """The loader's batches as :func:`to_device` gives them.

        Args:
            loader: yields what ``collate`` makes, in page-locked memory, if the device is a GPU and
                nothing is to wait; or, with a decoder, lists of ``Encoded``.
        """
        source = iter(loader)
        while True:
            started = time.perf_counter()
            # Asked for after the caller has queued its step: so the GPU has work meanwhile.
            batch = next(source, None)
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
            # Allocated on the side stream, used on this one: its memory may go to a later batch
            # only when what will be queued here is done.
            tensor.record_stream(current)
        return batch

    def _on_device(self, batch: Batch | list[Encoded]) -> Batch:
        return to_device(batch if self.decoder is None else self.decoder(batch), self.device)


@functools.cache  # each stream has a memory pool of its own
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    yield batch.images
    if batch.mask is not None:
        yield batch.mask
    if isinstance(batch.targets, PackedTargets):
        yield batch.targets.buffer  # the others are views of it
    else:
        for target in batch.targets:
            yield target["labels"]
            yield target["boxes"]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is, its images float32 and normalised.

    From page-locked memory nothing here waits for a GPU. What is already there is left as it is.

    Args:
        batch: as :func:`collate` makes it. Of targets that are a list only labels and boxes go
            along.
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
