"""Box losses of all decoder layers on a GPU, forward and backward, beside the published ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines.published_criterion import WEIGHTS, PublishedCriterion
from benchmarks.cases import Case, make
from benchmarks.gpu_timing import rows_of
from detr_fast import FastMatcher, PackedTargets
from detr_fast.ops import box_losses

SIZES = ((2, 100, 91, 20), (16, 100, 91, 20), (16, 300, 91, 100))  # B, N, K, M


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

    return {"box_losses": ours, "published criterion's": theirs}


def run_losses(case: Case, seed: int, rounds: int) -> list[dict]:
    """Rows, after a check that all gradients agree."""
    variants = loss_variants(case, seed)
    gradients = {name: call(0) for name, call in variants.items()}
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, gradients["published criterion's"], rtol=1e-4, atol=1e-6, msg=name
        )
    # Boxes read and their gradient written, in float32.
    moved = 2 * next(iter(gradients.values())).numel() * 4
    return rows_of(
        variants,
        rounds,
        what="box losses, forward and backward",
        family=case.family,
        problems=case.layers * case.images,
        queries=case.queries,
        targets=case.targets,
        bytes=moved,
        steps=0,
    )
