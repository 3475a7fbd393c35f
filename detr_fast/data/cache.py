"""Decoded images kept in memory, shared by DataLoader workers that were started by fork."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ImageCache:
    """Room for one uint8 [3, H, W] image per index, filled by whoever decodes it first.

    The memory is one anonymous shared mapping: forked workers write into the same pages, and unlike
    ``Tensor.share_memory_`` it does not count against a container's small ``/dev/shm``. Pages that
    are never written cost nothing. Two workers that decode the same image write the same bytes, and
    the flag is set after the pixels, so no lock is needed. Pickling (spawned workers, copies) keeps
    the layout and starts empty.

    Args:
        sizes: ``(height, width)`` of each image.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        self._allocate()

    def _allocate(self) -> None:
        counts = 3 * self._sizes.prod(axis=1)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        images = len(self._sizes)
        total = int(self._starts[-1])
        memory = np.frombuffer(mmap.mmap(-1, max(1, total + images)), dtype=np.uint8)
        self._pixels, self._filled = memory[:total], memory[total : total + images]

    def get(self, index: int) -> Tensor | None:
        """A copy of image ``index``, uint8 [3, H, W]; None when it is not kept yet."""
        if not self._filled[index]:
            return None
        return torch.from_numpy(self._view(index).copy())

    def put(self, index: int, image: Tensor) -> None:
        """Keep ``image``, uint8 [3, H, W] of exactly the size announced for ``index``."""
        self._view(index)[...] = image.numpy()
        self._filled[index] = 1

    def _view(self, index: int) -> np.ndarray:
        height, width = self._sizes[index]
        flat = self._pixels[self._starts[index] : self._starts[index + 1]]
        return flat.reshape(3, height, width)

    def __getstate__(self) -> dict[str, Any]:
        return {"_sizes": self._sizes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()
