"""Slow, obviously right twins of the compiled ops, the matcher and the loss, in torch and SciPy.

They are the tests' oracle and the ops' documentation. (Dropout has none: its random numbers are not
torch's.) None is meant for training, except that the slow paths of the drop-in matchers, and the
figures of a matching, take their costs from :func:`matching_cost`. What solves an assignment here
needs SciPy, which comes with the extra ``test``: ``pip install "detr-fast[test]"``.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops as torchvision_ops
from torchvision.ops import box_area, box_convert


def _scipy_solver():
    try:
        from scipy.optimize import linear_sum_assignment as solve
    except ImportError as error:
        raise ImportError(
            'detr_fast.reference needs SciPy: pip install scipy, or pip install "detr-fast[test]"'
        ) from error
    return solve


def linear_sum_assignment(cost: Any, maximize: bool = False) -> Any:
    """Twin of :func:`detr_fast.linear_sum_assignment`: one problem at a time, NumPy only.

    A matrix [R, C] gives ``(row_index, col_index)``, [min(R, C)] each; a batch [P, R, C] gives
    [P, min(R, C)] each; a list of 2-D arrays gives a list of pairs.
    """
    solve = _scipy_solver()
    if isinstance(cost, (list, tuple)) and any(np.ndim(item) >= 2 for item in cost):
        return [solve(item, maximize) for item in cost]
    cost = np.asarray(cost)
    if cost.ndim != 3:
        return solve(cost, maximize)
    pairs = [solve(matrix, maximize) for matrix in cost]
    shape = (len(cost), min(cost.shape[1:]))
    rows = np.array([pair[0] for pair in pairs], dtype=np.int64).reshape(shape)
    cols = np.array([pair[1] for pair in pairs], dtype=np.int64).reshape(shape)
    return rows, cols


def paired_iou(
    boxes1: Tensor,  # [..., 4] xyxy
    boxes2: Tensor,  # [..., 4] xyxy
    generalized: bool = False,
) -> Tensor:  # [...]
    """IoU, or generalised IoU (Rezatofighi et al. 2019), of each box with its counterpart.

    What torchvision computes, except that 0/0 counts as 0.
    """
    area1 = (boxes1[..., 2:] - boxes1[..., :2]).prod(-1)
    area2 = (boxes2[..., 2:] - boxes2[..., :2]).prod(-1)
    begin = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    end = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = (end - begin).relu().prod(-1)
    union = area1 + area2 - intersection
    # Guard the denominators, not the result: dividing by zero would poison the gradient.
    iou = intersection / torch.where(union > 0, union, 1.0)
    if not generalized:
        return iou
    begin = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    end = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    hull = (end - begin).prod(-1)
    return iou - (hull - union) / torch.where(hull > 0, hull, 1.0)


def box_iou(boxes1: Tensor, boxes2: Tensor, format: str = "xyxy") -> Tensor:
    """Twin of :func:`detr_fast.ops.box_iou`."""
    return _all_pairs(boxes1, boxes2, format, generalized=False)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor, format: str = "xyxy") -> Tensor:
    """Twin of :func:`detr_fast.ops.generalized_box_iou`."""
    return _all_pairs(boxes1, boxes2, format, generalized=True)


def _all_pairs(boxes1: Tensor, boxes2: Tensor, format: str, generalized: bool) -> Tensor:
    a, b = (
        box_convert(boxes if boxes.dtype == torch.float64 else boxes.float(), format, "xyxy")
        for boxes in (boxes1, boxes2)
    )
    return paired_iou(a[..., :, None, :], b[..., None, :, :], generalized)


def box_losses(
    boxes: Tensor,  # [L, B, N, 4] cxcywh
    target_boxes: Tensor,  # [T, 4] cxcywh
    query_index: Tensor,  # [L, T]
    image_offsets: Tensor,  # [B + 1]
    box_loss: str = "l1",
) -> tuple[Tensor, Tensor]:  # [L], [L]
    """Twin of :func:`detr_fast.ops.box_losses`: one pair at a time. Differentiable."""
    distance = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[box_loss]
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    target_boxes = target_boxes.to(boxes.dtype)
    coordinates, giou = [], []
    for layer, index in zip(boxes, query_index.tolist(), strict=True):
        sums = [layer.new_zeros(()), layer.new_zeros(())]
        for image, (begin, end) in zip(layer, pairwise(image_offsets.tolist()), strict=True):
            for t in range(begin, end):
                if not 0 <= index[t] < len(image):
                    continue
                pair = image[index[t]], target_boxes[t]
                sums[0] = sums[0] + distance(*pair, reduction="sum")
                corners = (box_convert(box, "cxcywh", "xyxy") for box in pair)
                sums[1] = sums[1] + 1 - paired_iou(*corners, generalized=True)
        coordinates.append(sums[0])
        giou.append(sums[1])
    return torch.stack(coordinates), torch.stack(giou)


def target_classes(
    query_index: Tensor,  # [L, T]
    labels: Tensor,  # [T]
    image_offsets: Tensor,  # [B + 1]
    queries: int,  # N
    no_object: int,  # K
) -> Tensor:  # [L, B, N]
    """Twin of :func:`detr_fast.ops.target_classes`."""
    images = list(pairwise(image_offsets.tolist()))
    classes = torch.full((len(query_index), len(images), queries), no_object)
    for layer, index in zip(classes, query_index.tolist(), strict=True):
        for image, (begin, end) in zip(layer, images, strict=True):
            for t in range(begin, end):
                if 0 <= index[t] < queries:
                    label = int(labels[t])
                    image[index[t]] = label if 0 <= label < no_object else no_object
    return classes.to(query_index.device)


# The keyword options of matching_cost; FastMatcher has attributes of the same names.
def cost_arguments(matcher: Any) -> dict[str, Any]:
    """Return the weights and options of a FastMatcher as keyword arguments of matching_cost."""
    names = ("cost_class", "cost_bbox", "cost_giou", "class_cost")
    names += ("focal_alpha", "focal_gamma", "focal_eps", "giou_guard", "giou_eps")
    return {name: getattr(matcher, name) for name in names}


def matching_cost(
    logits: Tensor,  # [N, K + 1]; [N, K] for the focal cost
    boxes: Tensor,  # [N, 4] cxcywh
    labels: Tensor,  # [M]
    target_boxes: Tensor,  # [M, 4] cxcywh
    cost_class: float = 1,
    cost_bbox: float = 5,
    cost_giou: float = 2,
    *,
    class_cost: str = "softmax",
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    focal_eps: float = 1e-8,
    giou_guard: str = "none",
    giou_eps: float = 1e-6,
) -> Tensor:  # [N, M]
    """Return the cost of every pair of one image (Carion et al. 2020, sections 3.1 and A.2).

    The class term is minus the probability, not its logarithm, so that its magnitude is comparable
    to the boxes' terms; the 1 of ``1 - p`` and ``1 - GIoU`` changes no matching and is left out.
    The options are those of :class:`detr_fast.FastMatcher`, except that for ``giou_guard="none"``
    0/0 is NaN.
    """
    if class_cost == "focal":
        p, q = logits[:, labels].sigmoid(), (-logits[:, labels]).sigmoid()  # q = 1 - p
        positive = -focal_alpha * q**focal_gamma * (p + focal_eps).log()
        negative = -(1 - focal_alpha) * p**focal_gamma * (q + focal_eps).log()
        cost = positive - negative
    else:
        cost = -logits.softmax(-1)[:, labels]
    distance = torch.cdist(boxes, target_boxes, p=1)
    a, b = (box_convert(box, "cxcywh", "xyxy") for box in (boxes, target_boxes))
    giou = (
        torchvision_ops.generalized_box_iou(a, b)
        if giou_guard == "none"
        else _guarded_giou(a, b, giou_guard, giou_eps)
    )
    return cost_class * cost + cost_bbox * distance - cost_giou * giou


def _guarded_giou(a: Tensor, b: Tensor, guard: str, eps: float) -> Tensor:
    """Return GIoU [N, M] of xyxy boxes [N, 4] and [M, 4], with guarded divisors."""

    def divisor(area: Tensor) -> Tensor:
        return area + eps if guard == "eps" else area.clamp(min=eps)

    overlap = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(0)
    hull = torch.max(a[:, None, 2:], b[:, 2:]) - torch.min(a[:, None, :2], b[:, :2])
    overlap, hull = overlap.prod(-1), hull.prod(-1)
    union = box_area(a)[:, None] + box_area(b) - overlap
    return overlap / divisor(union) - (hull - union) / divisor(hull)


class HungarianMatcher(nn.Module):
    """Twin of :class:`detr_fast.FastMatcher`: what the published DETR matcher returns.

    Called as ``matcher(outputs, targets)`` with ``{"pred_logits": [B, N, K + 1], "pred_boxes":
    [B, N, 4]}`` and B dicts ``{"labels": [M], "boxes": [M, 4]}``; returns B pairs ``(index_i,
    index_j)`` of int64 CPU tensors, index_i ascending, of length min(N, M). NaN raises
    SciPy's ValueError, unless ``nonfinite="last"``: then as few pairs without a finite cost as
    possible are matched. Other options as for :func:`matching_cost`.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 5,
        cost_giou: float = 2,
        nonfinite: str = "raise",
        **options: Any,
    ) -> None:
        super().__init__()
        if cost_class == cost_bbox == cost_giou == 0:
            raise ValueError("all costs can't be 0")
        self.weights = (cost_class, cost_bbox, cost_giou)
        self.nonfinite = nonfinite
        self.options = options

    @torch.no_grad()
    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        solve = _scipy_solver()
        matches = []
        for logits, boxes, target in zip(
            outputs["pred_logits"], outputs["pred_boxes"], targets, strict=True
        ):
            cost = matching_cost(
                logits, boxes, target["labels"], target["boxes"], *self.weights, **self.options
            )
            if self.nonfinite == "last":
                finite = cost.isfinite() & (boxes[:, None, 2:] >= 0).all(-1)
                known = cost[finite].double()
                # One more such pair costs more than all others together can save.
                last = (
                    known.max() + (known.max() - known.min() + 1) * (len(target["labels"]) + 1)
                    if len(known)
                    else 0
                )
                cost = cost.double().where(finite, last)
            query, index = solve(cost.cpu())
            matches.append((torch.as_tensor(query), torch.as_tensor(index)))
        return matches


def set_criterion(
    outputs: Mapping[str, Any],
    targets: Sequence[Mapping[str, Tensor]],
    num_classes: int,
    eos_coef: float = 0.1,
    weights: tuple[float, float, float] = (1, 5, 2),
    matcher: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Twin of :class:`detr_fast.losses.SetCriterion` in one process: one layer, one image, one pair
    at a time (Carion et al. 2020, section 3.1, equations 2 and 3).

    Returns ``loss`` and the unweighted ``loss_ce``, ``loss_bbox``, ``loss_giou`` of the last layer,
    and with ``_0``, ``_1``, ... of the earlier ones; all differentiable.
    """
    matcher = HungarianMatcher() if matcher is None else matcher
    num_boxes = max(1, sum(len(target["labels"]) for target in targets))
    losses: dict[str, Any] = {"loss": 0}
    layers = [*((f"_{i}", layer) for i, layer in enumerate(outputs.get("aux_outputs", ())))]
    for suffix, layer in [*layers, ("", outputs)]:
        logits, boxes = layer["pred_logits"], layer["pred_boxes"]
        classes = torch.full(logits.shape[:2], num_classes)
        l1 = giou = boxes.sum() * 0
        for b, (query_index, target_index) in enumerate(matcher(layer, targets)):
            for i, j in zip(query_index.tolist(), target_index.tolist(), strict=True):
                target = targets[b]["boxes"][j]
                classes[b, i] = targets[b]["labels"][j]
                l1 = l1 + (boxes[b, i] - target).abs().sum()
                pair = [box_convert(box[None], "cxcywh", "xyxy") for box in (boxes[b, i], target)]
                giou = giou + 1 - torchvision_ops.generalized_box_iou(*pair).squeeze()
        log_probability = logits.log_softmax(-1).gather(-1, classes[..., None])[..., 0]
        weight = torch.where(classes == num_classes, eos_coef, 1.0)
        parts = {
            "loss_ce": -(weight * log_probability).sum() / weight.sum(),
            "loss_bbox": l1 / num_boxes,
            "loss_giou": giou / num_boxes,
        }
        for (name, part), factor in zip(parts.items(), weights, strict=True):
            losses[name + suffix] = part
            losses["loss"] = losses["loss"] + factor * part
    return losses
