"""Pictures of detections and of a training run."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

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
    """A copy of the image with a box and a caption per detection, coloured by class.

    Lines and text grow with the image, so that they can be read at any size. Where captions would
    cover each other, only the surest one is drawn.
    """
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    longest = max(picture.size)
    line = max(1, round(longest / 320))
    font = ImageFont.truetype(_font_file(), max(10, round(longest / 56)))
    order = list(range(len(labels)))
    if scores is not None:
        order.sort(key=lambda i: -float(scores[i]))
    corners = []
    for i in reversed(order):  # the surest on top
        x1, y1, x2, y2 = (float(v) for v in boxes[i])
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=_colour(labels[i]), width=line)
        corners.append((x1, y1))
    captions: list[tuple[float, float, float, float]] = []
    for i, (x1, y1) in zip(order, reversed(corners), strict=True):
        text = class_names[int(labels[i])]
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


@functools.cache
def _font_file() -> str:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek and Cyrillic, no CJK."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _colour(label: Tensor | int) -> str:
    return PALETTE[int(label) % len(PALETTE)]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two rectangles (x1, y1, x2, y2) share a point."""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def image_grid(images: Sequence[Image.Image], columns: int, gap: int = 6) -> Image.Image:
    """Pictures side by side in rows, each centred in a cell of the largest size."""
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
    """The image with its longest side brought to ``longest`` pixels, and the factor."""
    factor = longest / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC), factor


def plot_training(rows: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """Draw the losses and the AP of a run over its epochs.

    Args:
        rows: of ``metrics.jsonl``, of kinds ``"train"`` and ``"val"``.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [row for row in rows if row["kind"] == "train"]
    val = [row for row in rows if row["kind"] == "val"]
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no window system, whatever backend the user has set
    losses, accuracy = figure.subplots(1, 2)
    parts = (
        ("loss_ce", "class (cross-entropy)"),
        ("loss_bbox", "box (L1)"),
        ("loss_giou", "box (1 - GIoU)"),
    )
    for index, (name, label) in enumerate(parts):
        epochs = np.array([row["epoch"] for row in train])
        values = np.array([row[name] for row in train], dtype=float)
        marker = "." if len(values) <= 3 else None  # a point has no line
        losses.plot(epochs, values, color=PALETTE[index], alpha=0.25, linewidth=0.8)
        losses.plot(*_smooth(epochs, values), color=PALETTE[index], label=label, marker=marker)
    losses.set(xlabel="epoch", ylabel="loss of the last decoder layer, unweighted", yscale="log")
    losses.legend(frameon=False)
    for index, name in enumerate(("AP", "AP50", "AP75")):
        accuracy.plot(
            [row["epoch"] for row in val],
            [row[name] for row in val],
            color=PALETTE[index],
            marker="." if len(val) <= 40 else None,
            label=name,
        )
    if val:
        accuracy.set_title(f"last: AP {val[-1]['AP']:.3f}, AP50 {val[-1]['AP50']:.3f}", fontsize=10)
    accuracy.set(xlabel="epoch", ylabel="validation", ylim=(0, 1))
    accuracy.legend(frameon=False, loc="upper left")
    for axes in (losses, accuracy):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title)
    figure.savefig(path)


def _smooth(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A running mean over a fortieth of the curve."""
    if not len(y):
        return x, y
    window = max(1, len(y) // 40)
    kernel = np.ones(window) / window
    return np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")
