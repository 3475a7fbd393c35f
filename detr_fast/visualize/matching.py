"""What the matcher decided in one image, why, and what a greedy choice would have done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from detr_fast.matching import FastMatcher
from detr_fast.reference import cost_arguments, matching_cost
from detr_fast.visualize.captions import place_captions
from detr_fast.visualize.figures import (
    PALETTE,
    draw_box,
    fit,
    lay_out,
    layer_name,
    new_figure,
    open_axes,
    plain,
    show_picture,
    to_image,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = (("class", "#9467bd"), ("L1", "#1f77b4"), ("GIoU", "#2ca02c"))
MOST_QUERIES = 40  # columns of the cost matrix


@dataclass(frozen=True, eq=False)
class ImageMatching:
    """The costs of one image's queries and targets, the matcher's choice and the greedy one.

    Costs are weighted as the matcher weights them: ``class_cost + l1_cost + giou_cost`` is what it
    minimises.
    """

    class_cost: Tensor  # [N, M]
    l1_cost: Tensor  # [N, M]
    giou_cost: Tensor  # [N, M]
    query_index: Tensor  # [M] the query of each target; -1 = none, with more targets than queries
    greedy_index: Tensor  # [M] each target's cheapest query, even if another target has the same

    @property
    def cost(self) -> Tensor:  # [N, M]
        return self.class_cost + self.l1_cost + self.giou_cost

    @property
    def duplicates(self) -> int:
        """Number of targets whose cheapest query is also another's, less one per such query."""
        return len(self.greedy_index) - len(self.greedy_index.unique())


@torch.no_grad()
def explain_matching(
    matcher: FastMatcher,
    outputs: Mapping[str, Tensor],  # of one decoder layer
    target: Mapping[str, Tensor],  # labels [M], boxes [M, 4] cxcywh
    image: int = 0,  # which of the batch
) -> ImageMatching:
    """Return the parts of the cost matrix, the matcher's choice, and the arg-min of each target.

    Raises:
        ValueError: the matcher rejects its input, or the image has no targets.
    """
    labels, boxes = target["labels"].cpu(), target["boxes"].float().cpu()
    if not len(labels):
        raise ValueError("this image has no targets: there is nothing to match")
    single = {
        name: outputs[name][image : image + 1].float().cpu()
        for name in outputs
        if name != "aux_outputs"
    }
    queries, targets = matcher(single, [{"labels": labels, "boxes": boxes}])[0]
    query_index = torch.full((len(labels),), -1)
    query_index[targets] = queries
    pairs = (single["pred_logits"][0], single["pred_boxes"][0], labels, boxes)
    arguments = cost_arguments(matcher)
    weights = ("cost_class", "cost_bbox", "cost_giou")
    parts = [
        matching_cost(*pairs, **arguments | {name: 0.0 for name in weights if name != part})
        for part in weights
    ]
    return ImageMatching(*parts, query_index, sum(parts).argmin(0))


def plot_matching(
    picture: Image.Image,
    layers: Sequence[Mapping[str, Tensor]],  # all decoder layers' outputs, the last one last
    target: Mapping[str, Tensor],
    class_names: Sequence[str],
    matcher: FastMatcher | None = None,
    *,
    image: int = 0,
    layer: int = -1,
) -> Image.Image:
    """Plot one image's matching: boxes, cost matrix, cost parts, and the query of each layer.

    Of more than ``MOST_QUERIES`` queries the matrix shows the matched and the cheapest ones.

    Args:
        picture: the image, of any size.
        layers: outputs as ``[*outputs["aux_outputs"], outputs]``.
        target: this image's target: labels [M], boxes [M, 4] cxcywh.
        image: index of the image in the batch.
        layer: the decoder layer to explain.

    Raises:
        ValueError: an image without targets, no such layer.
    """
    matcher = matcher or FastMatcher()
    if not -len(layers) <= layer < len(layers):
        raise ValueError(
            f"no decoder layer {layer}: there are outputs of {len(layers)}, counted from 0"
        )
    matchings = [explain_matching(matcher, outputs, target, image) for outputs in layers]
    matching = matchings[layer]
    count = len(matching.query_index)
    names = [f"{t}: {plain(class_names[int(k)], 20)}" for t, k in enumerate(target["labels"])]
    figure = new_figure(12.5, 7.9 + 0.3 * max(0, count - 6))
    figure.suptitle(f"decoder {layer_name(layer, len(layers))}", fontsize=11)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.5), height_ratios=(1.25, 1))
    boxes = layers[layer]["pred_boxes"][image].float().cpu()
    pairs = figure.add_subplot(grid[0, 0])
    truth = _pairs(pairs, fit(picture), target, boxes, matching)
    _matrix(figure.add_subplot(grid[0, 1]), matching, names)
    _layers(figure.add_subplot(grid[1, 0]), matchings, names)
    _parts(figure.add_subplot(grid[1, 1]), matching, names, matcher)
    lay_out(figure)
    _captions(pairs, truth, matching)
    return to_image(figure)


def _pairs(
    axes: Axes,
    picture: Image.Image,
    target: Mapping[str, Tensor],
    boxes: Tensor,  # [N, 4] cxcywh
    matching: ImageMatching,
) -> Tensor:  # [M, 4] the targets, xyxy in pixels of the picture
    scale = torch.tensor([picture.width, picture.height] * 2)
    show_picture(axes, picture, "targets (solid) → their matched queries (dashed)")
    truth = box_convert(target["boxes"].float().cpu(), "cxcywh", "xyxy") * scale
    predicted = box_convert(boxes, "cxcywh", "xyxy") * scale
    for t, query in enumerate(matching.query_index.tolist()):
        colour = PALETTE[t % len(PALETTE)]
        draw_box(axes, truth[t], colour)
        if query >= 0:
            draw_box(axes, predicted[query], colour, halo=False, linestyle=(0, (3, 2)))
    return truth


def _captions(axes: Axes, truth: Tensor, matching: ImageMatching) -> None:
    """Write the numbers of target and query at each target, where ``axes`` finally is.

    None covers another; a line leads to one that has found no place at its target. One for which
    there is no room in the whole picture is left out.
    """
    from matplotlib.lines import Line2D

    texts = [
        axes.text(
            0, 0, f"{t}" if query < 0 else f"{t}→{query}", va="top", fontsize=7, color="white",
            bbox={"facecolor": PALETTE[t % len(PALETTE)], "pad": 1.2, "linewidth": 0},
        )
        for t, query in enumerate(matching.query_index.tolist())
    ]  # fmt: skip
    to_pixels = axes.transData.inverted()
    extents = []  # of the coloured patches, in pixels of the picture
    for text in texts:
        text.update_bbox_position_size(axes.figure.canvas.get_renderer())
        extents.append(to_pixels.transform_bbox(text.get_bbox_patch().get_window_extent()))
    sizes = [(extent.width, abs(extent.height)) for extent in extents]
    boxes = truth.tolist()
    picture = (axes.get_xlim()[1], axes.get_ylim()[0])
    places = place_captions(boxes, sizes, picture, anywhere=True)
    for text, extent, place, size, box in zip(texts, extents, places, sizes, boxes, strict=True):
        if place is None:
            text.remove()
            continue
        # The patch's upper left corner goes there: the letters begin a little further on.
        text.set_position((place[0] - extent.x0, place[1] - min(extent.y0, extent.y1)))
        ends = [place[axis] + size[axis] for axis in (0, 1)]
        if any(place[i] > box[i + 2] + 1 or ends[i] < box[i] - 1 for i in (0, 1)):
            nearest = [min(max(box[i], place[i]), ends[i]) for i in (0, 1)]
            line = zip(box[:2], nearest, strict=True)
            axes.add_line(Line2D(*line, color=text.get_bbox_patch().get_facecolor(), linewidth=0.8))


def _matrix(axes: Axes, matching: ImageMatching, names: list[str]) -> None:
    cost = matching.cost.numpy().T  # [M, N]
    columns = np.arange(cost.shape[1])
    if len(columns) > MOST_QUERIES:
        chosen = np.concatenate([matching.query_index, matching.greedy_index])
        chosen = np.unique(chosen[chosen >= 0])
        others = [q for q in cost.min(0).argsort(kind="stable") if q not in set(chosen)]
        columns = np.sort(
            np.concatenate([chosen, others[: max(0, MOST_QUERIES - len(chosen))]])
        ).astype(int)
    place = {int(q): x for x, q in enumerate(columns)}
    shown = axes.imshow(cost[:, columns], aspect="auto", cmap="viridis_r", interpolation="nearest")
    axes.figure.colorbar(shown, ax=axes, label="cost", shrink=0.9, pad=0.01)
    for t, (query, greedy) in enumerate(
        zip(matching.query_index.tolist(), matching.greedy_index.tolist(), strict=True)
    ):
        axes.plot(place[greedy], t, "x", color="#d62728", markersize=8, markeredgewidth=2)
        if query >= 0:
            axes.plot(
                place[query], t, "o", markerfacecolor="none", markeredgecolor="black",
                markersize=12, markeredgewidth=1.8,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=8)
    size = 7 if len(columns) <= MOST_QUERIES else 5
    axes.set_xticks(
        range(len(columns)), columns, fontsize=size, rotation=90 if len(columns) > 20 else 0
    )
    left_out = (
        "" if len(columns) == cost.shape[1] else f", the cheapest {len(columns)} of {cost.shape[1]}"
    )
    axes.set_xlabel(f"query{left_out}", fontsize=9)
    shared = matching.duplicates
    note = "no duplicates" if not shared else f"{shared} of {len(names)} are duplicates"
    axes.set_title(
        f"cost; circle: the assignment, cross: arg-min of each target ({note})", fontsize=9
    )


def _parts(axes: Axes, matching: ImageMatching, names: list[str], matcher: FastMatcher) -> None:
    """Draw the cost of each target, part by part: for its matched query, and for the arg-min."""
    # Constants that make each part 0 for a perfect prediction; they change no matching.
    perfect = (
        matcher.cost_class if matcher.class_cost == "softmax" else 0.0,
        0.0,
        matcher.cost_giou,
    )
    open_axes(axes)
    height = 0.36
    ends = np.zeros(len(names))  # of the longer of a target's two bars
    for offset, index, hatch in (
        (-height / 2, matching.query_index, None),
        (height / 2, matching.greedy_index, "////"),
    ):
        left = np.zeros(len(names))
        for (label, colour), cost, constant in zip(
            PARTS, (matching.class_cost, matching.l1_cost, matching.giou_cost), perfect, strict=True
        ):
            value = np.array(
                [
                    float(cost[q, t]) + constant if q >= 0 else 0.0
                    for t, q in enumerate(index.tolist())
                ]
            )
            axes.barh(
                np.arange(len(names)) + offset, value, height * 0.95, left=left, color=colour,
                hatch=hatch, edgecolor="white", linewidth=0.5, label=None if hatch else label,
            )  # fmt: skip
            # The first part, a focal class cost, may be negative: then it goes to the left alone.
            left = left + value.clip(min=0)
        ends = np.maximum(ends, left)
    for t, (query, greedy) in enumerate(
        zip(matching.query_index.tolist(), matching.greedy_index.tolist(), strict=True)
    ):
        # One label for both bars: at the end of each, it would lie on the other.
        text = "no query" if query < 0 else f"query {query}"
        text += "" if query == greedy else f", arg-min {greedy}"
        axes.annotate(
            text, (ends[t], t), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    alike = torch.equal(matching.query_index, matching.greedy_index)
    axes.margins(x=0.12 if alike else 0.28)  # room for the labels
    axes.set_title(
        "cost above a perfect prediction's, by part: matched query (plain), arg-min (hatched)",
        fontsize=9,
    )
    # Below the axes: bars of few targets leave no corner free.
    axes.legend(
        frameon=False,
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=4,
        borderaxespad=2.5,
    )


def _layers(axes: Axes, matchings: list[ImageMatching], names: list[str]) -> None:
    """Draw the query of each target in each decoder layer; changes are marked."""
    from matplotlib.colors import ListedColormap

    index = torch.stack([matching.query_index for matching in matchings]).numpy()  # [L, M]
    changed = np.zeros_like(index, dtype=float)
    changed[1:] = index[1:] != index[:-1]
    axes.imshow(changed.T, aspect="auto", cmap=ListedColormap(["white", "#f4a582"]), vmin=0, vmax=1)
    for layer, row in enumerate(index):
        for t, query in enumerate(row):
            text = "-" if query < 0 else str(query)
            axes.text(layer, t, text, ha="center", va="center", fontsize=8)
    axes.set_xticks(
        range(len(matchings)), [f"layer {i}" for i in range(len(matchings))], fontsize=8
    )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    share = "" if len(matchings) < 2 else f"; it changes in {changed[1:].mean():.0%} of the steps"
    axes.set_title(f"matched query by decoder layer{share}", fontsize=9)
