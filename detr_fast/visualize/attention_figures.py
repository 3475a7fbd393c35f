"""Pictures of attention: what each detection's query looks at, and what encoder cells look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_convert

from detr_fast.faults import PredictionError
from detr_fast.models import PostProcess
from detr_fast.visualize.attention import AttentionRecord, record_attention
from detr_fast.visualize.figures import (
    PALETTE,
    draw_box,
    fit,
    layer_name,
    new_figure,
    plain,
    show_picture,
    to_image,
)
from detr_fast.visualize.heatmap import CellGrid, overlay

Views = list[tuple[str, Tensor, Tensor]]  # title, weights [n, h, w], boxes [n, 4] xyxy in pixels


class NoDetection(ValueError):
    """A picture of detections was wanted of an image without any."""


@torch.no_grad()
def plot_decoder_attention(
    model: nn.Module,
    image: Tensor,  # [3, h', w'] as the model takes it
    picture: Image.Image,  # the same image, of any size
    class_names: Sequence[str],
    *,
    threshold: float = 0.5,
    layer: int | str = -1,
    head: int | str = "mean",
    most: int = 8,
) -> Image.Image:
    """Plot the cross-attention of each detection's query, beside its box (paper, figure 6).

    Args:
        threshold: lowest score of the detections shown.
        layer: a decoder layer, or ``"all"``: one heat map per layer, with that layer's box (or
            with the last layer's, if the model predicts after the last layer only).
        head: an attention head, ``"mean"``, or ``"each"``: one heat map per head.
        most: largest number of detections shown, the highest scores first.

    Leaves the model in evaluation mode.

    Raises:
        NoDetection: a ValueError: no detection above the threshold.
        PredictionError: a score of NaN.
        ValueError: no such layer or head, ``most`` below 1, or all layers and each head at once.
    """
    if most < 1:
        raise ValueError(f"most is {most}, expected at least 1")
    if layer == "all" and head == "each":
        raise ValueError("choose either all layers or each head: the figure has one row per query")
    model.eval()
    with record_attention(model) as record:
        outputs = model(image[None])
    picture = fit(picture)
    height, width = picture.height, picture.width
    result = PostProcess()(outputs, torch.tensor([[height, width]], device=image.device))[0]
    if broken := int(result["scores"].isnan().sum()):
        raise PredictionError(f"the scores of {broken} of {len(result['scores'])} queries are NaN")
    scores, order = result["scores"].sort(descending=True)
    queries = order[scores >= threshold][:most]
    if not len(queries):
        raise NoDetection(
            f"no detection reaches {threshold}, the best is {float(scores[0]):.3f}: "
            "lower the threshold"
        )
    layers = [*outputs.get("aux_outputs", ()), outputs]
    views = _views(record, layers, queries, (height, width), layer, head)
    grid = CellGrid(record.feature_size, record.image_size, (height, width))
    found = [
        (int(q), class_names[int(result["labels"][q])], float(result["scores"][q])) for q in queries
    ]
    return _rows(picture, result["boxes"][queries].cpu(), found, views, grid)


def _views(
    record: AttentionRecord,
    layers: list[dict[str, Tensor]],
    queries: Tensor,
    size: tuple[int, int],
    layer: int | str,
    head: int | str,
) -> Views:
    """Return one heat map per column, with the boxes that the layer predicts."""

    def weights(index: int) -> Tensor:
        return record.decoder_attention(index)[0][:, queries].cpu()  # [heads, n, h, w]

    def boxes(index: int) -> Tensor:
        scale = torch.tensor([size[1], size[0]] * 2)
        boxes = layers[index if len(layers) > 1 else -1]["pred_boxes"][0, queries].float().cpu()
        return box_convert(boxes, "cxcywh", "xyxy") * scale

    count = len(record.decoder_layers)
    if layer == "all":
        return [
            (f"layer {i}{_of_head(head)}", _head(weights(i), head), boxes(i)) for i in range(count)
        ]
    maps = weights(int(layer))
    if head == "mean":
        return [(layer_name(int(layer), count), _head(maps, head), boxes(int(layer)))]
    heads = enumerate(maps) if head == "each" else [(head, _head(maps, head))]
    # Without the range: there is little room above a narrow picture.
    name = f"layer {int(layer) % count}"
    return [(name + _of_head(i), heat, boxes(int(layer))) for i, heat in heads]


def _of_head(head: int | str) -> str:
    """Return the end of a title: which head, unless it is the mean of all."""
    return "" if head == "mean" else f", head {head}"


def _head(weights: Tensor, head: int | str) -> Tensor:  # [heads, n, h, w] -> [n, h, w]
    if head == "mean":
        return weights.mean(0)
    if isinstance(head, (str, bool, float)) or not 0 <= int(head) < len(weights):
        raise ValueError(f"no head {head!r}: there are {len(weights)}, counted from 0, and 'mean'")
    return weights[int(head)]


def _rows(
    picture: Image.Image,
    boxes: Tensor,  # [n, 4] xyxy in pixels
    found: list[tuple[int, str, float]],  # query, class, score of each
    views: Views,
    grid: CellGrid,
) -> Image.Image:
    """Draw one row per detection, or several detections per row if there is room."""
    columns = 1 + len(views)
    per_row = max(1, min(len(found), 6 // columns))
    rows = -(-len(found) // per_row)
    cell = 2.5 if columns <= 6 else 1.9  # inches of the longer side
    wide = max(1.2, cell * min(1.0, picture.width / picture.height))
    tall = min(cell, wide * picture.height / picture.width)
    captions = _captions(found, int(wide / 0.07))  # 0.07 inches a letter
    above = 0.25 + 0.15 * max(caption.count("\n") for caption in captions)
    figure = new_figure(wide * columns * per_row, (tall + above) * rows)
    axes = figure.subplots(rows, columns * per_row, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for n, caption in enumerate(captions):
        row, first = divmod(n, per_row)
        colour = PALETTE[n % len(PALETTE)]
        left = axes[row, first * columns]
        show_picture(left, picture, caption)
        draw_box(left, boxes[n], colour)
        for ax, (title, maps, view_boxes) in zip(
            axes[row, first * columns + 1 : (first + 1) * columns], views, strict=True
        ):
            show_picture(ax, overlay(picture, grid.to_picture(maps[n])), title)
            draw_box(ax, view_boxes[n], colour, linewidth=1.1)
    return to_image(figure)


def _captions(found: list[tuple[int, str, float]], room: int) -> list[str]:
    """Return the captions of detections, in two lines if one of ``room`` letters is too short."""
    captions = [f"query {query}: {plain(name)} {score:.2f}" for query, name, score in found]
    if max(map(len, captions)) <= room:
        return captions
    return [f"query {query}\n{plain(name, room - 5)} {score:.2f}" for query, name, score in found]


@torch.no_grad()
def plot_encoder_attention(
    model: nn.Module,
    image: Tensor,  # [3, h', w'] as the model takes it
    picture: Image.Image,  # the same image, of any size
    points: Sequence[tuple[float, float]] | None = None,
    *,
    layer: int = -1,
    head: int | str = "mean",
) -> Image.Image:
    """Plot the encoder self-attention of the cells at some points (paper, figure 3).

    Args:
        points: (x, y) in pixels of ``picture``; default: the centres of the four detections of the
            highest scores, 0.5 or more, that do not overlap; if there are fewer, the centres of the
            image's quarters as well.

    Leaves the model in evaluation mode.

    Raises:
        ValueError: a point outside the picture, no such layer or head.
    """
    model.eval()
    with record_attention(model) as record:
        outputs = model(image[None])
    shown = fit(picture)
    if points is None:
        points = _default_points(outputs, shown)
    else:
        for index, (x, y) in enumerate(points):
            if not (0 <= x <= picture.width and 0 <= y <= picture.height):
                raise ValueError(
                    f"points[{index}] is ({x:g}, {y:g}), outside the {picture.width} x "
                    f"{picture.height} image"
                )
        factor = shown.width / picture.width
        points = [(x * factor, y * factor) for x, y in points]
    grid = CellGrid(record.feature_size, record.image_size, (shown.height, shown.width))
    cells = torch.tensor([grid.cell_at(x, y) for x, y in points])
    maps = _head(record.encoder_attention(cells, layer)[0].cpu(), head)  # [P, h, w]

    rows = -(-len(points) // 2)
    side = 2.6
    tall = side * min(1.5, shown.height / shown.width)
    figure = new_figure(side * 4, max(tall + 0.3, (tall + 0.3) * rows))
    layout = figure.add_gridspec(rows, 4)
    middle = figure.add_subplot(layout[:, 1:3])
    name = layer_name(layer, len(record.encoder_layers))
    show_picture(middle, shown, f"encoder {name}{_of_head(head)}")
    for n, point in enumerate(points):
        colour = PALETTE[n % len(PALETTE)]
        row, right = divmod(n, 2)
        ax = figure.add_subplot(layout[row, 3 * right])
        show_picture(ax, overlay(shown, grid.to_picture(maps[n])))
        ax.set_title(f"point {n + 1}", fontsize=9, color=colour, fontweight="bold")
        ax.spines[:].set_visible(True)
        ax.spines[:].set(color=colour, linewidth=2)
        for at in (ax, middle):
            at.plot(*point, "o", color=colour, markersize=8, markeredgecolor="white")
        middle.annotate(
            str(n + 1), point, (6, 6), textcoords="offset points", color="white", fontsize=10,
            fontweight="bold", path_effects=_outline(colour),
        )  # fmt: skip
    return to_image(figure)


def _default_points(outputs: dict[str, Tensor], picture: Image.Image) -> list[tuple[float, float]]:
    """Return the default ``points`` of ``plot_encoder_attention``."""
    size = torch.tensor([[picture.height, picture.width]])
    outputs = {name: outputs[name].cpu() for name in ("pred_logits", "pred_boxes")}
    result = PostProcess()(outputs, size)[0]
    boxes: list[Tensor] = []
    for index in result["scores"].argsort(descending=True).tolist():
        box = result["boxes"][index]
        apart = all(
            box[0] >= o[2] or o[0] >= box[2] or box[1] >= o[3] or o[1] >= box[3] for o in boxes
        )
        if apart and result["scores"][index] >= 0.5 and len(boxes) < 4:
            boxes.append(box)
    points = [(float(b[0] + b[2]) / 2, float(b[1] + b[3]) / 2) for b in boxes]
    points = [(min(max(x, 0), picture.width), min(max(y, 0), picture.height)) for x, y in points]
    quarters = [(x * picture.width, y * picture.height) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    return points + quarters[len(points) :]


def _outline(colour: str) -> list:
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=3, foreground=colour)]
