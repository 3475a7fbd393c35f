"""The set prediction loss: match, then compare the matched pairs (paper, section 3.1)."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from .boxes import paired_giou
from .matching import FastMatcher

BOX_LOSSES = ("l1", "smooth_l1")


class SetCriterion(nn.Module):
    """Class, L1 and GIoU loss over optimally matched queries, summed over decoder layers.

    Every decoder layer is matched anew, all of them in one call of the matcher, and its three
    losses are added with the same weights (paper, "auxiliary decoding losses").

    Args:
        num_classes: K, without "no object", which is class K.
        matcher: a ``FastMatcher``, or anything with its ``match_layers``. Default: that.
        eos_coef: weight of "no object" in the cross-entropy.
        weight_class, weight_bbox, weight_giou: weights of the three losses in the total.
        box_loss: ``"l1"`` (the paper) or ``"smooth_l1"``.

    Raises:
        ValueError: an unknown ``box_loss``, ``num_classes`` below one, a negative ``eos_coef``.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module | None = None,
        *,
        eos_coef: float = 0.1,
        weight_class: float = 1.0,
        weight_bbox: float = 5.0,
        weight_giou: float = 2.0,
        box_loss: str = "l1",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        if not 0 <= eos_coef < math.inf:
            raise ValueError(f"eos_coef is {eos_coef}, expected a finite weight of 0 or more")
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss is {box_loss!r}, expected one of {', '.join(BOX_LOSSES)}")
        self.num_classes = num_classes
        self.matcher = FastMatcher() if matcher is None else matcher
        self.weights = {
            "loss_ce": weight_class,
            "loss_bbox": weight_bbox,
            "loss_giou": weight_giou,
        }
        self.box_loss = box_loss
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = eos_coef
        self.register_buffer("class_weights", class_weights)

    def forward(
        self,
        outputs: dict,  # as DETR returns them, with or without aux_outputs
        targets: Sequence[dict[str, Tensor]],  # B times {"labels" [M], "boxes" [M, 4] cxcywh}
    ) -> dict[str, Tensor]:
        """The losses of a batch.

        Returns:
            ``loss``, the weighted total to differentiate; every part unweighted: ``loss_ce``,
            ``loss_bbox``, ``loss_giou`` of the last decoder layer and the same with ``_0``,
            ``_1``, ... of the earlier ones; and without gradient ``class_error`` (percent of
            matched queries of the last layer whose best class is wrong) and ``cardinality_error``
            (mean over images of | number of non-empty predictions - number of targets |).

        Raises:
            ValueError: what the matcher finds wrong with the outputs or targets, with its place;
                or logits that do not have K + 1 classes.
        """
        layers = [*outputs.get("aux_outputs", ()), outputs]
        if outputs["pred_logits"].shape[-1] != self.num_classes + 1:
            raise ValueError(
                f"pred_logits has {outputs['pred_logits'].shape[-1]} classes, expected "
                f"{self.num_classes} and one for 'no object'"
            )
        if not targets:
            raise ValueError("there is no image: targets is empty")
        matches = self.matcher.match_layers(layers, targets)
        # In float32 whatever the model ran in: class weights and small boxes need the digits.
        logits = torch.stack([layer["pred_logits"].float() for layer in layers])  # [L, B, N, K+1]
        boxes = torch.stack([layer["pred_boxes"].float() for layer in layers])  # [L, B, N, 4]
        layer, image, query, target = _flatten(matches, targets, logits.device)  # each [L * P]

        # An image without objects may have come as torch.tensor([]).
        target_labels = torch.cat([t["labels"].long() for t in targets]).to(logits.device)  # [T]
        target_boxes = torch.cat([t["boxes"].reshape(-1, 4) for t in targets]).to(boxes)  # [T, 4]
        classes = logits.new_full(logits.shape[:3], self.num_classes, dtype=torch.long)
        classes[layer, image, query] = target_labels[target]
        num_boxes = _mean_over_processes(len(target_labels), logits.device).clamp(min=1)

        parts = {
            "loss_ce": self._class_loss(logits, classes),
            **self._box_losses(boxes[layer, image, query], target_boxes[target], len(layers)),
        }
        parts["loss_bbox"] = parts["loss_bbox"] / num_boxes
        parts["loss_giou"] = parts["loss_giou"] / num_boxes
        losses = {"loss": sum(self.weights[name] * part.sum() for name, part in parts.items())}
        for name, part in parts.items():
            losses[name] = part[-1].detach()
            losses |= {f"{name}_{i}": part[i].detach() for i in range(len(layers) - 1)}
        last = layer == len(layers) - 1
        losses |= _diagnostics(logits[-1], classes[-1], image[last], query[last], targets)
        return losses

    def _class_loss(
        self,
        logits: Tensor,  # [L, B, N, K+1]
        classes: Tensor,  # [L, B, N]
    ) -> Tensor:  # [L]
        """Cross-entropy, averaged by class weight: "no object" counts ``eos_coef``."""
        loss = F.cross_entropy(
            logits.flatten(0, 2), classes.flatten(), self.class_weights, reduction="none"
        )
        weight = self.class_weights[classes].flatten(1).sum(1)
        # No weight at all: without objects, and with an eos_coef of 0 or without queries.
        return loss.view(len(logits), -1).sum(1) / weight.clamp(min=torch.finfo(weight.dtype).tiny)

    def _box_losses(
        self,
        predicted: Tensor,  # [L * P, 4] cxcywh
        wanted: Tensor,  # [L * P, 4] cxcywh
        num_layers: int,
    ) -> dict[str, Tensor]:  # each [L], summed over pairs
        distance = F.l1_loss if self.box_loss == "l1" else F.smooth_l1_loss
        coordinates = distance(predicted, wanted, reduction="none")
        giou = paired_giou(
            box_convert(predicted, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
        )
        return {
            "loss_bbox": coordinates.view(num_layers, -1).sum(1),
            "loss_giou": (1 - giou).view(num_layers, -1).sum(1),
        }


def _flatten(
    matches: list[list[tuple[Tensor, Tensor]]], targets: Sequence[dict], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The indices (layer, image, query, target of the batch) of all pairs, each [L * P].

    Each layer has the same number P of pairs, the sum over images of min(N, M).
    """
    first_target = [0]
    for target in targets:
        first_target.append(first_target[-1] + len(target["labels"]))
    layer, image, query, target = [], [], [], []
    for index, images in enumerate(matches):
        for b, (i, j) in enumerate(images):
            layer.append(torch.full_like(i, index))
            image.append(torch.full_like(i, b))
            query.append(i)
            target.append(j + first_target[b])
    # One copy to the device for all four.
    stacked = torch.stack([torch.cat(column) for column in (layer, image, query, target)])
    return tuple(stacked.to(device))


def _mean_over_processes(value: float, device: torch.device) -> Tensor:
    """The mean of a number over all processes of a distributed run, as a scalar tensor."""
    mean = torch.tensor(float(value), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean


@torch.no_grad()
def _diagnostics(
    logits: Tensor,  # [B, N, K+1]
    classes: Tensor,  # [B, N]
    image: Tensor,  # [P]
    query: Tensor,  # [P]
    targets: Sequence[dict],
) -> dict[str, Tensor]:
    """``class_error`` and ``cardinality_error`` of the last layer, to be read, not trained."""
    best = logits.argmax(-1)
    wrong = (best != classes)[image, query].float()
    class_error = 100 * wrong.mean() if len(wrong) else wrong.new_zeros(())
    found = (best != logits.shape[-1] - 1).sum(1)
    wanted = torch.tensor([len(t["labels"]) for t in targets], device=found.device)
    return {
        "class_error": class_error,
        "cardinality_error": (found - wanted).abs().float().mean(),
    }
