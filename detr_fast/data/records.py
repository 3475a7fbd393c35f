"""What is known about the images of a data set, in a few arrays."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), dtype=np.float64)


def _no_labels() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One image and what is known about it. Boxes are xyxy in pixels of the original image."""

    image_id: int
    path: Path | None  # None: the image is generated
    width: int
    height: int
    boxes: np.ndarray = field(default_factory=_no_boxes)  # float64 [M, 4]
    labels: np.ndarray = field(default_factory=_no_labels)  # int64 [M]
    areas: np.ndarray | None = None  # float64 [M], of the object's outline; None: the box's area
    crowd_boxes: np.ndarray = field(default_factory=_no_boxes)  # float64 [C, 4]
    crowd_labels: np.ndarray = field(default_factory=_no_labels)  # int64 [C]


class Records(Sequence[Record]):
    """The records of many images. ``records[i]`` is made when asked for, its arrays are views.

    A list of them would be millions of objects, and reading an object of Python's writes to it: its
    references are counted in it. So each process that a DataLoader forks would come to have a copy
    of its own of them all. These arrays stay shared. They cannot be written to.

    Args:
        image_ids: int64 [images].
        paths: the file of each image; "" for a generated one.
        sizes: int64 [images, 2], (width, height).
        image_of: int64 [T], the position of the image that each box is of. Boxes of an image keep
            their order.
        boxes: float64 [T, 4] xyxy.
        labels: int64 [T].
        areas: float64 [T], of the objects' outlines; NaN: the box's area.
        crowd: bool [T], which of the boxes are crowd regions.

    Attributes:
        image_ids, sizes: as given.
        object_counts: int64 [images], how many boxes of each image are not crowd regions.
    """

    def __init__(
        self,
        image_ids: np.ndarray,
        paths: Iterable[str],
        sizes: np.ndarray,
        image_of: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        areas: np.ndarray,
        crowd: np.ndarray,
    ) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._paths = b"".join(encoded)  # one object
        self._path_ends = np.cumsum([0, *map(len, encoded)])
        self.image_ids, self.sizes = image_ids, sizes
        order = np.lexsort((crowd, image_of))  # image by image, its objects before its crowds
        self._boxes, self._labels, self._crowd = boxes[order], labels[order], crowd[order]
        self._areas = np.where(np.isnan(areas), box_areas(boxes), areas)[order]
        self._ends = np.cumsum([0, *np.bincount(image_of, minlength=len(image_ids))])
        self.object_counts = np.bincount(image_of[~crowd], minlength=len(image_ids))
        self._protect()

    @classmethod
    def pack(cls, records: Iterable[Record]) -> Records:
        """Return copies of ``records``.

        Raises:
            ValueError: naming the image, if its id, size or a label is not a whole number, or its
                arrays do not fit each other.
        """
        records = [_checked(record) for record in records]
        boxes = [part for r in records for part in (r.boxes, r.crowd_boxes)]
        labels = [part for r in records for part in (r.labels, r.crowd_labels)]
        areas = [part for r in records for part in (r.areas, np.full(len(r.crowd_labels), np.nan))]
        source = np.repeat(np.arange(len(labels)), [len(part) for part in labels])
        return cls(
            np.array([r.image_id for r in records], dtype=np.int64),
            ["" if r.path is None else os.fsdecode(r.path) for r in records],
            np.array([(r.width, r.height) for r in records], dtype=np.int64).reshape(-1, 2),
            source // 2,
            np.concatenate([_no_boxes(), *boxes]),
            np.concatenate([_no_labels(), *labels]),
            np.concatenate([np.zeros(0), *areas]),
            source % 2 == 1,
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        if isinstance(index, slice):
            return Records.pack(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} records")
        index %= len(self)
        name = self._paths[self._path_ends[index] : self._path_ends[index + 1]]
        width, height = self.sizes[index].tolist()
        start, end = self._ends[index], self._ends[index + 1]
        middle = start + self.object_counts[index]
        return Record(
            int(self.image_ids[index]),
            Path(os.fsdecode(name)) if name else None,
            width,
            height,
            self._boxes[start:middle],
            self._labels[start:middle],
            self._areas[start:middle],
            self._boxes[middle:end],
            self._labels[middle:end],
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._protect()  # a pickled array can be written to

    def _protect(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def check_labels(self, num_classes: int) -> None:
        """Check that all labels are 0..num_classes-1.

        Raises:
            ValueError: naming the first image with another one.
        """
        wrong = np.flatnonzero((self._labels < 0) | (self._labels >= num_classes))
        if len(wrong):
            image = np.searchsorted(self._ends, wrong[0], side="right") - 1
            raise ValueError(
                f"image {self.image_ids[image]}: label {self._labels[wrong[0]]}, expected "
                f"0..{num_classes - 1}"
            )

    def count_labels(self, num_classes: int) -> np.ndarray:
        """Return how many objects of each class there are, int64 [num_classes]."""
        return np.bincount(self._labels[~self._crowd], minlength=num_classes)


def _checked(record: Record) -> Record:
    """Return a record whose arrays have their types; areas that are not known are NaN."""
    try:
        numbers = map(operator.index, (record.image_id, record.width, record.height))
        image_id, width, height = map(np.int64, numbers)
        boxes, labels, areas = _columns(record.boxes, record.labels, record.areas)
        crowd_boxes, crowd_labels, _ = _columns(record.crowd_boxes, record.crowd_labels, None)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"image {record.image_id}: {error}") from error
    return Record(
        image_id, record.path, width, height, boxes, labels, areas, crowd_boxes, crowd_labels
    )


def _columns(boxes: Any, labels: Any, areas: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, boxes = np.asarray(labels), np.asarray(boxes, dtype=np.float64)
    count = labels.size
    boxes = boxes if boxes.size else _no_boxes()
    areas = np.full(count, np.nan) if areas is None else np.asarray(areas, dtype=np.float64)
    if (boxes.shape, labels.shape, areas.shape) != ((count, 4), (count,), (count,)):
        raise ValueError(
            f"boxes {list(boxes.shape)}, labels {list(labels.shape)} and areas "
            f"{list(areas.shape)} do not fit each other"
        )
    if count and labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype}, expected whole numbers")
    return boxes, labels.astype(np.int64), areas


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas of boxes [M, 4] xyxy."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
