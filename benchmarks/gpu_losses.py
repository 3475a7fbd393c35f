"""Box losses of all decoder layers on a GPU, forward and backward, beside the published ones."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.baselines.published_criterion import WEIGHTS, PublishedCriterion
from benchmarks.cases import Case, make
from benchmarks.gpu_timing import Problem
from detr_fast import FastMatcher, PackedTargets
from detr_fast.ops import box_losses

LOSSES, PUBLISHED = "box losses, forward and backward", "published criterion's"
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

    return {"box_losses": ours, PUBLISHED: theirs}


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
        _wrong_gradients,
        lambda: 0,
    )


def _wrong_gradients(results: Mapping[str, object]) -> dict[str, str]:
    """Whose gradient is not the published criterion's."""
    wrong = {}
    for variant, gradient in results.items():
        try:
            torch.testing.assert_close(
                gradient, results.get(PUBLISHED, gradient), rtol=1e-4, atol=1e-6
            )
        except AssertionError as error:
            wrong[variant] = str(error)
    return wrong
