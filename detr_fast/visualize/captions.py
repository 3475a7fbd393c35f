"""Where the captions of boxes go: to their boxes, and none over another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

Box = Sequence[float]  # x1, y1, x2, y2, y downwards
Size = tuple[float, float]  # width, height


def place_captions(
    boxes: Sequence[Box], sizes: Sequence[Size], picture: Size, anywhere: bool = False
) -> list[tuple[float, float] | None]:
    """Return the upper left corner of each box's caption, or None: no place is free.

    The first boxes choose first. A caption goes above its box, else inside it at the top, below it
    or inside it at the bottom, at the left or the right; inside only if it is no larger than the
    box, unless there is nothing else. All that the picture has room for is inside the picture.

    Args:
        sizes: of the captions.
        picture: its size.
        anywhere: where no place at the box is free, take the nearest one in the picture.
    """
    places: list[tuple[float, float] | None] = []
    taken = np.zeros((0, 4))
    for box, (width, height) in zip(boxes, sizes, strict=True):
        corners = np.array(list(_near(box, (width, height), picture)))
        free = corners[_is_free(corners, (width, height), taken)]
        if not len(free) and anywhere:
            corners = _everywhere(box, (width, height), picture)
            free = corners[_is_free(corners, (width, height), taken)]
        if not len(free):
            places.append(None)
            continue
        x, y = free[0].tolist()
        places.append((x, y))
        taken = np.vstack([taken, (x, y, x + width, y + height)])
    return places


def _near(box: Box, size: Size, picture: Size) -> Iterator[tuple[float, float]]:
    """Yield the places at a box, the best first."""
    width, height = size
    right, bottom = (max(0, side - own) for side, own in zip(picture, size, strict=True))
    x1, x2 = sorted(min(max(box[i], 0), picture[0]) for i in (0, 2))
    y1, y2 = sorted(min(max(box[i], 0), picture[1]) for i in (1, 3))
    columns = [min(x1, right), min(max(0, x2 - width), right)]
    over, under = min(y1, bottom), min(max(0, y2 - height), bottom)
    fits = width <= x2 - x1 and height <= y2 - y1
    rows = [y1 - height] if y1 >= height else []
    if fits:
        rows.append(over)
    if y2 <= bottom:
        rows.append(y2)
    rows += [under] if fits else [over, under]
    yield from ((x, y) for y in rows for x in columns)


def _everywhere(box: Box, size: Size, picture: Size) -> np.ndarray:  # [n, 2]
    """Return places all over the picture, those nearest to the box's upper left corner first."""
    right, bottom = (max(0, side - own) for side, own in zip(picture, size, strict=True))
    x, y = np.meshgrid(
        np.arange(0, right + 1e-9, size[0] / 4), np.arange(0, bottom + 1e-9, size[1] / 4)
    )
    corners = np.stack([x.ravel(), y.ravel()], -1)
    nearest = np.clip(np.array(box[:2]), corners, corners + size)
    return corners[np.hypot(*(nearest - box[:2]).T).argsort(kind="stable")]


def _is_free(corners: np.ndarray, size: Size, taken: np.ndarray) -> np.ndarray:  # [n] bool
    """Return which captions of a size overlap none of the rectangles [k, 4] that are taken."""
    low, high = corners[:, None], corners[:, None] + size
    apart = 1e-6  # captions may touch, whatever the rounding
    return ~((low + apart < taken[:, 2:]) & (taken[:, :2] + apart < high)).all(-1).any(-1)
