"""Detections drawn into their image."""

import math
from collections.abc import Sequence
from itertools import accumulate

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detr_fast.visualize.captions import place_captions
from detr_fast.visualize.figures import PALETTE
from detr_fast.visualize.fonts import font_file

MOST_COVERED = 0.15  # of an image, by captions


def draw_detections(
    image: Image.Image,
    boxes: Tensor | Sequence[Sequence[float]],  # [n, 4] xyxy in pixels
    labels: Tensor | Sequence[int],  # [n]
    class_names: Sequence[str],
    scores: Tensor | Sequence[float] | None = None,  # [n] in 0..1
) -> Image.Image:
    """Return a copy of the image with a box and a caption per detection, coloured by class.

    Lines and text grow with the image, so that they can be read at any size. Captions do not cover
    each other: they move around their boxes, those of the highest scores choosing first, and one
    that finds no free place is left out. So are those that would make captions cover more than
    ``MOST_COVERED`` of the image: of many detections, colours still tell the classes.

    Raises:
        ValueError: a box with NaN.
    """
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    size = min(max(picture.size), 3 * min(picture.size))  # in a panorama the height counts
    line = max(2, round(size / 320))  # a line of one pixel is hard to see on a photograph
    order = list(range(len(labels)))
    if scores is not None:
        order.sort(key=lambda i: -float(scores[i]))
    corners = [[float(v) for v in boxes[i]] for i in order]
    for i, corner in zip(order, corners, strict=True):
        if any(map(math.isnan, corner)):
            raise ValueError(f"boxes[{i}] is {corner}, which cannot be drawn")
    for i, (x1, y1, x2, y2) in reversed(list(zip(order, corners, strict=True))):
        # The highest score on top.
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=_colour(labels[i]), width=line)
    texts, fonts, extents = [], [], []
    for i in order:
        text = class_names[int(labels[i])]
        # By the class alone: fonts are searched once for each, not for each score.
        fonts.append(
            ImageFont.truetype(font_file(text + " 0123456789."), max(10, round(size / 56)))
        )
        texts.append(text if scores is None else f"{text} {float(scores[i]):.2f}")
        extents.append(draw.textbbox((0, 0), texts[-1], font=fonts[-1]))
    margin = line + 1
    sizes = [(x2 - x1 + 2 * margin, y2 - y1 + 2 * margin) for x1, y1, x2, y2 in extents]
    covered = accumulate(width * height for width, height in sizes)
    most = MOST_COVERED * picture.width * picture.height
    shown = max(1, sum(area <= most for area in covered))
    places = place_captions(corners[:shown], sizes[:shown], picture.size)
    for n, place in enumerate(places):
        if place is None:
            continue
        (x, y), (width, height), (left, top, *_) = place, sizes[n], extents[n]
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_colour(labels[order[n]]))
        draw.text((x + margin - left, y + margin - top), texts[n], fill="white", font=fonts[n])
    return picture


def _colour(label: Tensor | int) -> str:
    return PALETTE[int(label) % len(PALETTE)]
