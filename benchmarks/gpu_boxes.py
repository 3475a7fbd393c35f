"""Boxes on a GPU, forward and backward: the losses of all layers beside the published ones, and
generalised IoU beside torchvision's."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torchvision
from torch import Tensor
from torchvision.ops import box_convert

from benchmarks.baselines.published_criterion import WEIGHTS, PublishedCriterion
from benchmarks.cases import Case, make
from benchmarks.gpu_names import BOX_LOSSES, IOU, IOU_OP, LOSSES, PUBLISHED_LOSSES, TORCHVISION
from benchmarks.gpu_timing import Problem
from detr_fast import FastMatcher, PackedTargets
from detr_fast.ops import box_losses, generalized_box_iou

LOSS_SIZES = ((2, 100, 91, 20), (16, 100, 91, 20), (16, 300, 91, 100))  # B, N, K, M


def loss_variants(
    case: Case, seed: int, device: str = "cuda"
) -> dict[str, Callable[[int], Tensor]]:
    """For each variant a call that gives the gradient [L, B, N, 4] of the weighted box losses.

    All get the same matching, in the form in which their matcher gives it.
    """
    layers, targets = make(case, seed, device)
    packed = PackedTargets.pack(targets)
    matches = FastMatcher().match_packed(layers, packed)
    pairs = FastMatcher().match_layers(layers, targets)
    boxes = torch.stack([layer["pred_boxes"] for layer in layers]).requires_grad_()
    published = PublishedCriterion(case.classes).to(device)
    count = max(1, sum(len(target["labels"]) for target in targets))

    def ours(_: int) -> Tensor:
        l1, giou = box_losses(
            boxes, matches.targets.boxes, matches.query_index, matches.targets.offsets
        )
        total = WEIGHTS["loss_bbox"] * l1.sum() + WEIGHTS["loss_giou"] * giou.sum()
        return torch.autograd.grad(total / count, boxes)[0]

    def theirs(_: int) -> Tensor:
        total = 0.0
        for layer, indices in zip(boxes, pairs, strict=True):
            losses = published.box_losses({"pred_boxes": layer}, targets, indices, count)
            total = total + sum(WEIGHTS[name] * loss for name, loss in losses.items())
        return torch.autograd.grad(total, boxes)[0]

    return {BOX_LOSSES: ours, PUBLISHED_LOSSES: theirs}


def losses(case: Case, seed: int, device: str = "cuda") -> Problem:
    """The box losses of all layers and their gradient, as a problem to time."""
    return Problem(
        f"{LOSSES} {case.name}",
        {
            "what": LOSSES,
            **case.about(),
            # Boxes read and their gradient written, in float32.
            "bytes": 2 * case.layers * case.images * case.queries * 4 * 4,
        },
        loss_variants(case, seed, device),
        partial(_wrong_gradients, PUBLISHED_LOSSES),
        lambda: 0,
    )


def box_ious(seed: int, device: str = "cuda", images: int = 16) -> Problem:
    """Generalised IoU of 900 queries' and 100 targets' boxes of each image, and its gradient."""
    layers, targets = make(Case("random", images, 900, 1, 100, layers=1, exact=True), seed, device)
    queries, wanted = (
        box_convert(boxes, "cxcywh", "xyxy")
        for boxes in (layers[0]["pred_boxes"], torch.stack([t["boxes"] for t in targets]))
    )
    queries.requires_grad_()
    count = wanted.shape[1]

    def theirs(_: int) -> Tensor:
        pairs = zip(queries, wanted, strict=True)
        total = sum(torchvision.ops.generalized_box_iou(q, t).sum() for q, t in pairs)
        return torch.autograd.grad(total / count, queries)[0]

    return Problem(
        IOU,
        {
            "what": IOU,
            "family": "random",
            "problems": images,
            "queries": 900,
            "targets": 100,
            "bytes": 2 * images * 900 * 100 * 4,  # written, and its gradient read
        },
        {
            IOU_OP: lambda _: torch.autograd.grad(
                generalized_box_iou(queries, wanted).sum() / count, queries
            )[0],
            TORCHVISION: theirs,
        },
        partial(_wrong_gradients, TORCHVISION),
        lambda: 0,
    )


def _wrong_gradients(reference: str, results: Mapping[str, object]) -> dict[str, str]:
    """Whose gradient is not that of the variant named ``reference``."""
    wrong = {}
    for variant, gradient in results.items():
        try:
            torch.testing.assert_close(
                gradient, results.get(reference, gradient), rtol=1e-4, atol=1e-6
            )
        except AssertionError as error:
            wrong[variant] = str(error)
    return wrong
