"""A batch's targets and matches in flat tensors, which a GPU can use without a wait of the host.

Letters: B images, N queries, M targets of one image, T of all images, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from detr_fast.matching.input import check_targets


@dataclass(frozen=True, eq=False)
class PackedTargets:
    """The targets of B images, one after the other, in one buffer: one copy moves them to a GPU.

    :meth:`pack` makes them from the list of dicts that DETR code passes around. ``DataLoader`` and
    training loops call ``pin_memory`` and ``to``.

    With a ``capacity`` the tensors have that many rows whatever the batch, the last of them
    padding, and only the device knows the sizes. A CUDA graph that was captured with one batch can
    then be replayed with others, copied into the same memory by :meth:`copy_`.
    """

    buffer: Tensor = field(repr=False)  # uint8; the others are views of it
    labels: Tensor  # [T] int64
    boxes: Tensor  # [T, 4] float32 cxcywh
    offsets: Tensor  # [B + 1] int32: where each image's targets begin, and the last one's end
    counts: tuple[int, ...] | None  # M of each image; None: only the device knows
    most: int  # upper bound of M

    @classmethod
    def pack(
        cls, targets: Sequence[Mapping[str, Tensor]], capacity: int | None = None
    ) -> PackedTargets:
        """Pack targets on their device, or on the CPU if they are not all on one device.

        Args:
            targets: B dicts ``{"labels": [M] integers, "boxes": [M, 4] cxcywh}``; other entries are
                left out.
            capacity: T of the result; default: the number of targets.

        Raises:
            ValueError: for a missing key, a wrong shape or dtype, or more targets than
                ``capacity``.
            RuntimeError: for targets on a GPU while a CUDA graph is captured.
        """
        check_targets(targets, len(targets))
        counts = tuple(len(target["labels"]) for target in targets)
        total = sum(counts)
        if capacity is not None and total > capacity:
            raise ValueError(
                f"{total} targets in {len(targets)} images, but the capacity is {capacity}"
            )
        rows = total if capacity is None else capacity
        devices = {target[key].device for target in targets for key in ("labels", "boxes")}
        device = devices.pop() if len(devices) == 1 else torch.device("cpu")
        buffer = torch.zeros(_size(rows, len(counts)), dtype=torch.uint8, device=device)
        labels, boxes, offsets = _views(buffer, rows, len(counts))
        filled = [target for target, count in zip(targets, counts, strict=True) if count]
        if filled:
            labels[:total] = torch.cat([target["labels"].to(device) for target in filled])
            boxes[:total] = torch.cat([target["boxes"].detach().to(device) for target in filled])
        begins = torch.tensor(_offsets(counts), dtype=torch.int32, device="cpu")
        offsets.copy_(_page_locked(begins) if device.type == "cuda" else begins, non_blocking=True)
        if capacity is not None:
            return cls(buffer, labels, boxes, offsets, None, capacity)
        return cls(buffer, labels, boxes, offsets, counts, max(counts) if counts else 0)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def device(self) -> torch.device:
        return self.buffer.device

    def pin_memory(self) -> PackedTargets:
        """Return the same in page-locked memory, from which copies to a GPU need no wait."""
        return self._of(self.buffer.pin_memory())

    def to(
        self, device: torch.device | str, non_blocking: bool = True, copy: bool = False
    ) -> PackedTargets:
        """Return the same on another device, by one copy; to a GPU through page-locked memory.

        A copy to the CPU is complete when this returns, whatever ``non_blocking`` says.

        Args:
            copy: whether to copy even if the targets are on that device already.

        Raises:
            RuntimeError: for a copy from the CPU to a GPU while a CUDA graph is captured.
        """
        device = torch.device(device)
        if device == self.device and not copy:
            return self
        buffer = _page_locked(self.buffer) if device.type == "cuda" else self.buffer
        non_blocking = non_blocking and device.type != "cpu"
        return self._of(buffer.to(device, non_blocking=non_blocking, copy=copy))

    def copy_(self, other: PackedTargets) -> None:
        """Overwrite this with a batch of the same capacity and number of images, without a wait.

        Raises:
            ValueError: if either differs, or if one of the two was packed without a capacity.
            RuntimeError: as :meth:`to`.
        """
        room, needed = ((len(t), len(t.labels), t.counts is None) for t in (self, other))
        if room != needed or self.counts is not None:
            raise ValueError(
                f"{needed[0]} images with room for {needed[1]} targets do not fit into {room[0]} "
                f"images with room for {room[1]}: pack both with the same capacity"
            )
        source = _page_locked(other.buffer) if self.buffer.is_cuda else other.buffer
        # To the CPU it would not be known when it ends.
        self.buffer.copy_(source, non_blocking=self.buffer.is_cuda)

    def unpack(self) -> list[dict[str, Tensor]]:
        """Return the B dicts ``{"labels": [M], "boxes": [M, 4]}``, views of this. Waits for sizes
        that only the device knows."""
        offsets = self.offsets.tolist() if self.counts is None else _offsets(self.counts)
        return [
            {"labels": self.labels[begin:end], "boxes": self.boxes[begin:end]}
            for begin, end in pairwise(offsets)
        ]

    def _of(self, buffer: Tensor) -> PackedTargets:
        return _unflatten(buffer, len(self.labels), len(self), self.counts, self.most)

    def __reduce__(self) -> tuple:  # so that what unpickles has views of its buffer again
        return _unflatten, (self.buffer, len(self.labels), len(self), self.counts, self.most)


def _unflatten(
    buffer: Tensor, rows: int, images: int, counts: tuple[int, ...] | None, most: int
) -> PackedTargets:
    return PackedTargets(buffer, *_views(buffer, rows, images), counts, most)


def _page_locked(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of it in page-locked memory, to copy to a GPU without a wait."""
    if not tensor.is_cpu or torch.compiler.is_compiling():  # which cannot trace what follows
        return tensor
    # A captured copy would read this memory at every replay.
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "targets are copied from the CPU while a CUDA graph is captured: pack them with a "
            "capacity and move them to the GPU before the capture"
        )
    return tensor if tensor.is_pinned() else tensor.pin_memory()


def _size(rows: int, images: int) -> int:
    # Whole int64: torch.compile cannot make that view of other sizes.
    return 24 * rows + -(-4 * (images + 1) // 8) * 8


def _views(buffer: Tensor, rows: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
    # Wider elements first, to be aligned.
    sizes = [8 * rows, 16 * rows, 4 * (images + 1)]
    labels, boxes, offsets, _ = buffer.split_with_sizes([*sizes, len(buffer) - sum(sizes)])
    boxes = boxes.view(torch.float32).view(rows, 4)
    return labels.view(torch.int64), boxes, offsets.view(torch.int32)


def _offsets(counts: Sequence[int]) -> list[int]:
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return offsets


@dataclass(frozen=True, eq=False)
class Matches:
    """Which query is assigned to which target, for all layers and images.

    With more targets than queries some targets have none.
    """

    query_index: Tensor  # [L, T] int64: the target's query in its image; -1 = none
    targets: PackedTargets  # on the device of query_index
