"""Generated images: coloured circles, squares and triangles on noise. No file needed."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from detr_fast.data.dataset import DetectionDataset, Transforms
from detr_fast.data.errors import DataError
from detr_fast.data.records import Record

CLASS_NAMES = ("circle", "square", "triangle")

_MAX_OBJECTS = 5
_SIDE = (14 / 96, 40 / 96)  # side of a shape's box, in image widths
_MAX_TURN = math.radians(15)  # of squares and triangles, either way
_GAP = 2  # pixels between two boxes, so that no shape hides another
_TRIES = 40  # placements tried before a shape is left out
_CONTRAST = 95.0  # least RGB distance between a shape and the background's mean colour


class Shapes(DetectionDataset):
    """1 to 5 circles, squares and triangles per image, generated when asked for.

    Shapes never touch each other, so each is fully visible. A pixel belongs to a shape when its
    centre lies inside, and a box encloses exactly those pixels. Sides are 14 to 40 pixels at
    ``image_size`` 96 and grow with it. Labels: 0 circle, 1 square, 2 triangle.

    Image ``i`` depends on ``(seed, i)`` only; with ``fresh=True`` on ``(seed, epoch, i)``, so that
    each ``set_epoch`` gives new images, but the same ones whenever training is repeated. The epoch
    is in shared memory, so that workers that persist between epochs see it.

    Args:
        num_images: length of the data set.
        image_size: height and width in pixels, at least 32.
        seed: not negative; different seeds give different images.
        transforms: called as ``transforms(image, target)``.
        fresh: new images every epoch.
    """

    def __init__(
        self,
        num_images: int = 1000,
        image_size: int = 96,
        seed: int = 0,
        transforms: Transforms | None = None,
        fresh: bool = False,
    ) -> None:
        if num_images < 1 or image_size < 32 or seed < 0:
            raise DataError(
                f"shapes need num_images >= 1, image_size >= 32 and seed >= 0, got {num_images}, "
                f"{image_size} and {seed}"
            )
        super().__init__([], CLASS_NAMES, range(1, len(CLASS_NAMES) + 1), transforms)
        self.num_images = num_images
        self.image_size = image_size
        self.seed = seed
        self.fresh = fresh
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self.num_images

    def set_epoch(self, epoch: int) -> None:
        """Choose the images of ``epoch`` (with ``fresh=True``; otherwise nothing changes)."""
        if self.fresh and epoch != int(self._epoch):
            self._epoch.fill_(epoch)
            self._coco = None
            self.__dict__.pop("_object_counts", None)  # a cached property

    def record(self, index: int) -> Record:
        return self._load(index)[1]

    def _load(self, index: int) -> tuple[Tensor, Record]:
        # A plain set and each epoch of a fresh one have separate streams: 0 and 1 + epoch.
        stream = 1 + int(self._epoch) if self.fresh else 0
        rng = np.random.default_rng((self.seed, stream, index))
        pixels, boxes, labels = _draw(rng, self.image_size)
        size = self.image_size
        return torch.from_numpy(pixels), Record(index, None, size, size, boxes, labels)


def _draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return uint8 [3, size, size] pixels, float64 [M, 4] xyxy boxes, int64 [M] labels."""
    dice = _dice(rng)
    canvas, mean = _background(rng, size)
    count = 1 + int(next(dice) * _MAX_OBJECTS)
    low, high = _SIDE[0] * size, _SIDE[1] * size
    sides = sorted((low + next(dice) * (high - low) for _ in range(count)), reverse=True)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for side in sides:  # the largest first: it is the hardest to place
        label = int(next(dice) * len(CLASS_NAMES))
        cover = _coverage(label, side, (2 * next(dice) - 1) * _MAX_TURN)
        corner = _free_place(dice, cover.shape, size, boxes)
        if corner is None:
            continue
        x, y = corner
        inside = cover >= 0.5
        columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
        boxes.append(
            (x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1)
        )
        labels.append(label)
        _paint(canvas, cover, x, y, _colour(dice, mean))
    # The grain lies over everything, as in a photograph: a flat colour would give shapes away.
    grain = rng.integers(0, 256, canvas.shape, dtype=np.uint8).astype(np.float32)
    canvas += (grain - 127.5) * _grain_strength(next(dice))
    pixels = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
    return pixels, np.array(boxes, dtype=np.float64), np.array(labels, dtype=np.int64)


def _dice(rng: np.random.Generator) -> Iterator[float]:
    """Yield uniform numbers in [0, 1), drawn in bulk: single draws cost a microsecond each."""
    while True:
        yield from rng.random(64).tolist()


def _grain_strength(u: float) -> float:
    return 0.10 + 0.20 * u


def _background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return soft clouds around a muted colour, float32 [3, size, size], and the mean [3]."""
    blend = _cloud_weights(size)  # [size, G]
    grid = blend.shape[1]
    mean = rng.uniform(50, 200) + rng.uniform(-20, 20, 3)
    knots = rng.standard_normal((3, grid, grid), dtype=np.float32) * np.float32(16)
    knots += mean.astype(np.float32)[:, None, None]
    return blend @ knots @ blend.T, mean


@lru_cache(maxsize=8)
def _cloud_weights(size: int, grid: int = 6) -> np.ndarray:
    """Return, in row y, the weights of ``grid`` knots at pixel y, for a smooth curve."""
    position = (np.arange(size) + 0.5) / size * (grid - 1)
    weights = np.exp(-((position[:, None] - np.arange(grid)) ** 2) / 0.5)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=8)
def _pixel_centres(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32) + np.float32(0.5)


def _coverage(label: int, side: float, turn: float) -> np.ndarray:
    """Return how much of each pixel the shape covers, float32 [h, w] in 0..1, in a small window.

    It is 0.5 at a pixel whose centre is on the edge, and falls from 1 to 0 over one pixel around.
    """
    if label == 0:
        extent = math.ceil(side)
        offset = _pixel_centres(extent) - np.float32(extent / 2)
        distance = np.sqrt(offset[:, None] ** 2 + offset[None, :] ** 2)
        return np.clip(np.float32(side / 2 + 0.5) - distance, 0, 1)
    corners = 4 if label == 1 else 3
    # Corners on a circle; a square stands on its side, a triangle points up.
    start = turn - math.pi / 2 + (math.pi / 4 if corners == 4 else 0)
    angles = [start + 2 * math.pi * k / corners for k in range(corners)]
    xs, ys = [math.cos(a) for a in angles], [math.sin(a) for a in angles]
    scale = side / max(max(xs) - min(xs), max(ys) - min(ys))
    left, top = min(xs) * scale, min(ys) * scale
    width = math.ceil((max(xs) - min(xs)) * scale)
    height = math.ceil((max(ys) - min(ys)) * scale)
    x = _pixel_centres(width) + np.float32(left)
    y = _pixel_centres(height) + np.float32(top)
    inradius = scale * math.cos(math.pi / corners)
    depth = None  # distance to the nearest edge, positive inside
    for angle in angles:
        normal = angle + math.pi / corners
        along = x[None, :] * np.float32(math.cos(normal)) + y[:, None] * np.float32(
            math.sin(normal)
        )
        edge = np.float32(inradius) - along
        depth = edge if depth is None else np.minimum(depth, edge, out=depth)
    return np.clip(depth + np.float32(0.5), 0, 1)


def _free_place(
    dice: Iterator[float],
    shape: tuple[int, ...],
    size: int,
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int] | None:
    """Return a corner (x, y) of a [h, w] window clear of all boxes; None if none is found."""
    height, width = shape
    for _ in range(_TRIES):
        x = int(next(dice) * (size - width + 1))
        y = int(next(dice) * (size - height + 1))
        if all(
            x >= right + _GAP or right_of < left or y >= bottom + _GAP or below < top
            for (left, top, right, bottom), right_of, below in (
                (box, x + width + _GAP - 1, y + height + _GAP - 1) for box in taken
            )
        ):
            return x, y
    return None


def _colour(dice: Iterator[float], background: np.ndarray) -> tuple[float, float, float]:
    """Return a strong colour that differs from the background."""
    while True:
        red, green, blue = colorsys.hsv_to_rgb(
            next(dice), 0.55 + 0.45 * next(dice), 0.5 + 0.5 * next(dice)
        )
        colour = (255 * red, 255 * green, 255 * blue)
        if math.dist(colour, background) >= _CONTRAST:
            return colour


def _paint(
    canvas: np.ndarray, cover: np.ndarray, x: int, y: int, colour: tuple[float, float, float]
) -> None:
    height, width = cover.shape
    region = canvas[:, y : y + height, x : x + width]
    region += (np.array(colour, dtype=np.float32)[:, None, None] - region) * cover
