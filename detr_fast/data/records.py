"""What is known about the images of a data set, in a few arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

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
    of its own of them all. These arrays stay shared.

    Attributes: ``image_ids`` and ``sizes`` as below; ``object_counts``, int64 [images], how many
    boxes of each image are not crowd regions.

    Args:
        image_ids: int64 [images].
        paths: the file of each image; "" for a generated one.
        sizes: int64 [images, 2], (width, height).
        image_of: int64 [T], the position of the image that each box is of. Boxes of an image keep
            their order.
        boxes: float64 [T, 4] xyxy.
        labels: int64 [T].
        areas: float64 [T], of the objects' outlines.
        crowd: bool [T], which of the boxes are crowd regions.
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
        self._boxes, self._labels, self._areas = boxes[order], labels[order], areas[order]
        self._crowd = crowd[order]
        self._ends = np.cumsum([0, *np.bincount(image_of, minlength=len(image_ids))])
        self.object_counts = np.bincount(image_of[~crowd], minlength=len(image_ids))

    @classmethod
    def pack(cls, records: Iterable[Record]) -> Records:
        """Return ``records`` as arrays; areas that are not known become those of the boxes.

        Raises:
            ValueError: a record whose boxes, labels and areas differ in number.
        """
        records = list(records)
        for record in records:
            objects = {len(a) for a in (record.boxes, record.labels, record.areas) if a is not None}
            crowds = {len(record.crowd_boxes), len(record.crowd_labels)}
            if len(objects) > 1 or len(crowds) > 1:
                raise ValueError(
                    f"image {record.image_id}: boxes, labels and areas differ in number"
                )
        boxes = [part for record in records for part in (record.boxes, record.crowd_boxes)]
        labels = [part for record in records for part in (record.labels, record.crowd_labels)]
        areas = [area for record in records for area in (record.areas, None)]
        known = [
            box_areas(part) if area is None else area
            for part, area in zip(boxes, areas, strict=True)
        ]
        source = np.repeat(np.arange(len(boxes)), [len(part) for part in boxes])
        return cls(
            np.array([record.image_id for record in records], dtype=np.int64),
            ["" if record.path is None else str(record.path) for record in records],
            np.array([(r.width, r.height) for r in records], dtype=np.int64).reshape(-1, 2),
            source // 2,
            np.concatenate([_no_boxes(), *boxes]),
            np.concatenate([_no_labels(), *labels], dtype=np.int64),
            np.concatenate([np.zeros(0), *known]),
            source % 2 == 1,
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # raises IndexError
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


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas of boxes [M, 4] xyxy."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
