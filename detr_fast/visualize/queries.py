"""What each object query has specialised in, over a data set (paper, figure 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detr_fast.matching import FastMatcher
from detr_fast.precision import autocast
from detr_fast.visualize.figures import new_figure, open_axes, to_image

# Colours that colour-blind readers can tell apart (Okabe and Ito), in the order of the paper.
KINDS = (("small", "#009E73"), ("large, wide", "#D55E00"), ("large, tall", "#0072B2"))
SMALL = 0.04  # share of the image's area below which a box is small here: a fifth of each side
POINTS = 1500  # boxes drawn per query at most


@dataclass(frozen=True, eq=False)
class QueryPredictions:
    """The last decoder layer's predictions over a data set of I images."""

    boxes: Tensor  # [I, N, 4] cxcywh in 0..1
    scores: Tensor  # [I, N] of the best class
    matched: Tensor  # [I, N] bool: whether the query was matched to a target

    def use(self, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
        """Return the shares of images in which each query detects, and is matched: [N] each."""
        return (self.scores >= threshold).float().mean(0), self.matched.float().mean(0)


@torch.no_grad()
def collect_predictions(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor | None, list[dict[str, Tensor]]]],
    amp: torch.dtype | None = None,
    matcher: FastMatcher | None = None,
    observe: Callable[[dict[str, Tensor], list[dict[str, Tensor]]], object] | None = None,
) -> QueryPredictions:
    """Return every query's prediction in every image. Leaves the model in evaluation mode.

    Args:
        batches: images [B, 3, H, W] and mask [B, H, W] or None, on the model's device, and B
            targets with ``labels`` and ``boxes`` cxcywh.
        matcher: matches queries to targets; default: FastMatcher().
        observe: called with each batch's logits and boxes, float32, and targets, all on the CPU.

    Raises:
        ValueError: there are no batches.
    """
    matcher = matcher or FastMatcher()
    boxes, scores, matched = [], [], []
    model.eval()
    for images, mask, targets in batches:
        with autocast(images.device, amp):
            outputs = model(images, mask)
        outputs = {name: outputs[name].float().cpu() for name in ("pred_logits", "pred_boxes")}
        targets = [{k: t[k].cpu() for k in ("labels", "boxes")} for t in targets]
        is_matched = torch.zeros(outputs["pred_boxes"].shape[:2], dtype=torch.bool)
        for image, (queries, _) in zip(is_matched, matcher(outputs, targets), strict=True):
            image[queries] = True
        if observe is not None:
            observe(outputs, targets)
        boxes.append(outputs["pred_boxes"])
        scores.append(outputs["pred_logits"].softmax(-1)[..., :-1].amax(-1))
        matched.append(is_matched)
    if not boxes:
        raise ValueError("there are no images to predict in")
    return QueryPredictions(torch.cat(boxes), torch.cat(scores), torch.cat(matched))


def box_kinds(boxes: Tensor) -> Tensor:
    """Return 0 small, 1 large and wide, 2 large and tall, of boxes [..., 4] cxcywh in 0..1: [...].

    Width and height are compared as shares of the image's sides, as in the paper.
    """
    width, height = boxes[..., 2], boxes[..., 3]
    return torch.where(width * height < SMALL, 0, torch.where(width > height, 1, 2))


def plot_query_boxes(
    predictions: QueryPredictions, most: int = 20, threshold: float = 0.0
) -> Image.Image:
    """Plot, per query, the centres of its boxes in all images, coloured by size and shape.

    Args:
        most: number of queries shown: those matched most often, in the order of their numbers.
        threshold: lowest score of the boxes drawn; 0 draws every prediction, as the paper does.
            Of a query's boxes at most ``POINTS`` are drawn, evenly chosen.

    Raises:
        ValueError: ``most`` below 1.
    """
    if most < 1:
        raise ValueError(f"most is {most}, expected at least 1")
    from matplotlib.lines import Line2D

    _, matched = predictions.use()
    count = min(most, len(matched))
    queries = matched.argsort(descending=True, stable=True)[:count].sort().values.tolist()
    columns = min(count, 10 if count > 12 else 5)
    rows = -(-count // columns)
    cell = 1.35 if columns > 5 else 2.1
    figure = new_figure(max(cell * columns, 4.5), (cell + 0.25) * rows + 0.55)
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat:
        ax.set_axis_off()
    for ax, query in zip(grid.flat, queries, strict=False):
        ax.set_axis_on()
        ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
        ax.set_title(f"query {query}: {matched[query]:.0%}", fontsize=8)
        keep = predictions.scores[:, query] >= threshold
        boxes = predictions.boxes[keep, query]
        boxes = boxes[torch.linspace(0, max(0, len(boxes) - 1), min(POINTS, len(boxes))).long()]
        kinds = box_kinds(boxes).numpy()
        colours = np.array([colour for _, colour in KINDS])[kinds]
        x, y = boxes[:, 0].numpy(), boxes[:, 1].numpy()
        ax.scatter(x, y, c=colours, s=5 if len(x) > 100 else 10, alpha=0.6, linewidths=0)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=name) for name, colour in KINDS
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    shown = "all predictions" if threshold <= 0 else f"predictions of score {threshold} or more"
    figure.suptitle(
        f"centres of {shown} in {len(predictions.scores):,} images; "
        "percentage of images in which the query is matched",
        fontsize=9,
    )
    return to_image(figure)


def plot_query_use(predictions: QueryPredictions, threshold: float = 0.5) -> Image.Image:
    """Plot how often each query detects something, and how often it is matched to a target."""
    detects, matched = (share.numpy() for share in predictions.use(threshold))
    order = np.argsort(-matched, kind="stable")
    place = np.arange(len(order))
    figure = new_figure(min(14, max(6.5, 0.16 * len(order) + 2)), 3.6)
    ax = figure.subplots()
    open_axes(ax)
    ax.bar(place, matched[order], width=0.8, color="#9ecae1", label="matched to a target")
    ax.plot(place, detects[order], ".", color="#D55E00", label=f"detects, score >= {threshold}")
    if len(order) <= 60:
        ax.set_xticks(place, order, fontsize=7, rotation=90 if len(order) > 30 else 0)
        ax.set_xlabel("query, the most often matched first")
    else:
        ax.set_xlabel("queries, the most often matched first")
    ax.set_ylabel("share of the images")
    ax.set_ylim(0, None)
    ax.margins(x=0.01)
    unused = int((matched == 0).sum())
    ax.set_title(
        f"{len(order)} queries, {effective_queries(torch.from_numpy(matched)):.1f} effective, "
        f"{unused} never matched in {len(predictions.scores):,} images",
        fontsize=10,
    )
    ax.legend(frameon=False, fontsize=9)
    return to_image(figure)


def effective_queries(use: Tensor) -> float:
    """Return the exponential of the entropy of the distribution of matches over the queries.

    N if all are matched equally often, 1 if one query has all matches, 0 without any match.

    Args:
        use: [N] how often each query is matched, in any unit.
    """
    share = use.double() / use.sum().clamp(min=1e-12)
    share = share[share > 0]
    return float((-(share * share.log()).sum()).exp()) if len(share) else 0.0
