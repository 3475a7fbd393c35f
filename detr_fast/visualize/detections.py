"""Detections drawn into their image."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detr_fast.visualize.fonts import font_file

# Tableau's ten colours, in an order that keeps neighbours apart; dark enough for white text.
PALETTE = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#e3730a"),
    *("#0e9aa7", "#c2389a", "#8c564b", "#6b6b6b", "#93931a"),
)


def draw_detections(
    image: Image.Image,
    boxes: Tensor | Sequence[Sequence[float]],  # [n, 4] xyxy in pixels
    labels: Tensor | Sequence[int],  # [n]
    class_names: Sequence[str],
    scores: Tensor | Sequence[float] | None = None,  # [n] in 0..1
) -> Image.Image:
    """Return a copy of the image with a box and a caption per detection, coloured by class.

    Lines and text grow with the image, so that they can be read at any size. Where captions would
    overlap, only that of the highest score is drawn.
    """
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    longest = max(picture.size)
    line = max(2, round(longest / 320))  # a line of one pixel is hard to see on a photograph
    order = list(range(len(labels)))
    if scores is not None:
        order.sort(key=lambda i: -float(scores[i]))
    corners = []
    for i in reversed(order):  # the highest score on top
        x1, y1, x2, y2 = (float(v) for v in boxes[i])
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=_colour(labels[i]), width=line)
        corners.append((x1, y1))
    captions: list[tuple[float, float, float, float]] = []
    for i, (x1, y1) in zip(order, reversed(corners), strict=True):
        text = class_names[int(labels[i])]
        # By the class alone: fonts are searched once for each, not for each score.
        font = ImageFont.truetype(font_file(text + " 0123456789."), max(10, round(longest / 56)))
        if scores is not None:
            text += f" {float(scores[i]):.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * line + 2, bottom - top + 2 * line + 2
        # Above the box where there is room, else inside it; never outside the picture.
        x = min(max(0, x1), max(0, picture.width - width))
        y = y1 - height if y1 >= height else y1
        y = min(max(0, y), max(0, picture.height - height))
        area = (x, y, x + width, y + height)
        if any(_overlap(area, other) for other in captions):
            continue
        captions.append(area)
        draw.rectangle(area, fill=_colour(labels[i]))
        draw.text((x + line + 1 - left, y + line + 1 - top), text, fill="white", font=font)
    return picture


def _colour(label: Tensor | int) -> str:
    return PALETTE[int(label) % len(PALETTE)]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Return whether two rectangles (x1, y1, x2, y2) share a point."""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def image_grid(images: Sequence[Image.Image], columns: int, gap: int = 6) -> Image.Image:
    """Arrange pictures side by side in rows, each centred in a cell of the largest size."""
    if not images:
        raise ValueError("image_grid needs at least one image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    grid = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (255, 255, 255)
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x = gap + column * (width + gap) + (width - image.width) // 2
        y = gap + row * (height + gap) + (height - image.height) // 2
        grid.paste(image, (x, y))
    return grid


def enlarge(image: Image.Image, longest: int) -> tuple[Image.Image, float]:
    """Return the image with its longest side scaled to ``longest`` pixels, and the factor."""
    factor = longest / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC), factor
