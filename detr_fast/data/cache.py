"""Decoded images kept in memory, shared by DataLoader workers that were started by fork."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ImageCache:
    """Room for one uint8 [3, H, W] image per index, filled by the process that decodes it first.

    The memory is one anonymous shared mapping: forked workers write into the same pages, and unlike
    ``Tensor.share_memory_`` it does not count against a container's small ``/dev/shm``. Pages that
    are never written cost nothing. There is no lock: two workers that decode the same image write
    the same bytes, and an image is asked for again an epoch after it was put here. A pickled cache
    (spawned workers, copies) keeps the layout and starts empty.

    Args:
        sizes: ``(height, width)`` of each image.
        limit: largest number of bytes of pixels to keep; None: all. The first images that fit are
            kept, the others never.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], limit: int | None = None) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        ends = np.cumsum(3 * self._sizes.prod(axis=1))
        self.wanted = int(ends[-1]) if len(ends) else 0  # bytes that all images would take
        self.room = len(ends)  # images that are kept
        if limit is not None:
            self.room = int(np.searchsorted(ends, limit, side="right"))
        self._allocate()

    def _allocate(self) -> None:
        counts = 3 * self._sizes[: self.room].prod(axis=1)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        total = int(self._starts[-1])
        memory = np.frombuffer(mmap.mmap(-1, max(1, total + self.room)), dtype=np.uint8)
        self._pixels, self._filled = memory[:total], memory[total : total + self.room]

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def bytes(self) -> int:
        """The bytes of pixels when all images that have room are kept."""
        return len(self._pixels)

    def size(self, index: int) -> tuple[int, int]:
        """Return ``(height, width)`` that image ``index`` is kept at."""
        height, width = self._sizes[index]
        return int(height), int(width)

    def has_room(self, index: int) -> bool:
        """Return whether image ``index`` is one of those to keep."""
        return index < self.room

    def get(self, index: int) -> Tensor | None:
        """Return a copy of image ``index``, uint8 [3, H, W]; None when it is not kept (yet)."""
        if not self.has_room(index) or not self._filled[index]:
            return None
        return torch.from_numpy(self._view(index).copy()).permute(2, 0, 1)

    def put(self, index: int, image: Tensor) -> None:
        """Keep ``image``, uint8 [3, H, W] of exactly the size set for ``index``."""
        self._view(index)[...] = image.permute(1, 2, 0).numpy()
        self._filled[index] = 1

    def describe(self) -> str:
        """Describe in one line what is kept, and what does not fit."""
        line = f"{len(self):,} images in {_gigabytes(self.wanted)}"
        if self.room == len(self):
            return line + ", all kept in memory once decoded"
        return (
            f"{line} do not fit: {self.room:,} are kept, in {_gigabytes(self.bytes)}; the others "
            "are decoded again each time (raise the limit with --cache-gb)"
        )

    def _view(self, index: int) -> np.ndarray:
        height, width = self._sizes[index]
        flat = self._pixels[self._starts[index] : self._starts[index + 1]]
        return flat.reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        return {"_sizes": self._sizes, "wanted": self.wanted, "room": self.room}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
