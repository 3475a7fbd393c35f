"""The published DETR's loss and training step, with everything in it that waits for the device.

Written from the paper and the behaviour of the published code: one matching and one copy to the
host per decoder layer, boxes checked by assertions on device values, the GIoU of all pairs of which
the diagonal is used, and every value that is logged read by the host in every step.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from benchmarks.baselines.published_matcher import PublishedMatcher

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def checked_giou(a: Tensor, b: Tensor) -> Tensor:  # [N, 4], [M, 4] xyxy -> [N, M]
    assert (a[:, 2:] >= a[:, :2]).all()
    assert (b[:, 2:] >= b[:, :2]).all()
    area_a, area_b = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))
    sides = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0)
    overlap = sides[..., 0] * sides[..., 1]
    union = area_a[:, None] + area_b - overlap
    hull = torch.max(a[:, None, 2:], b[:, 2:]) - torch.min(a[:, None, :2], b[:, :2])
    hull = hull[..., 0] * hull[..., 1]
    return overlap / union - (hull - union) / hull


class AssertingMatcher(PublishedMatcher):
    """With the published assertions on the boxes, which the shared matcher leaves out."""

    @torch.no_grad()
    def forward(self, outputs: dict, targets: list[dict]) -> list[tuple[Tensor, Tensor]]:
        for boxes in (
            outputs["pred_boxes"].flatten(0, 1),
            torch.cat([t["boxes"] for t in targets]),
        ):
            corners = box_convert(boxes, "cxcywh", "xyxy")
            assert (corners[:, 2:] >= corners[:, :2]).all()
        return super().forward(outputs, targets)


class PublishedCriterion(nn.Module):
    def __init__(self, num_classes: int, eos_coef: float = 0.1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = AssertingMatcher()
        weights = torch.ones(num_classes + 1)
        weights[-1] = eos_coef
        self.register_buffer("class_weights", weights)

    def forward(self, outputs: dict, targets: list[dict]) -> dict[str, Tensor]:
        indices = self.matcher(outputs, targets)
        boxes = torch.as_tensor(
            [sum(len(t["labels"]) for t in targets)],
            dtype=torch.float,
            device=outputs["pred_logits"].device,
        )
        num_boxes = torch.clamp(boxes, min=1).item()
        losses = self._layer(outputs, targets, indices, num_boxes, class_error=True)
        for i, layer in enumerate(outputs["aux_outputs"]):
            indices = self.matcher(layer, targets)
            part = self._layer(layer, targets, indices, num_boxes, class_error=False)
            losses |= {f"{name}_{i}": value for name, value in part.items()}
        return losses

    def _layer(
        self, outputs: dict, targets: list[dict], indices: list, num_boxes: float, class_error: bool
    ) -> dict[str, Tensor]:
        logits = outputs["pred_logits"]
        image = torch.cat([torch.full_like(i, b) for b, (i, _) in enumerate(indices)])
        query = torch.cat([i for i, _ in indices])
        labels = torch.cat([t["labels"][j] for t, (_, j) in zip(targets, indices, strict=True)])
        classes = torch.full(
            logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device
        )
        classes[image, query] = labels
        losses = {"loss_ce": F.cross_entropy(logits.transpose(1, 2), classes, self.class_weights)}
        with torch.no_grad():
            if class_error:
                correct = logits[image, query].argmax(-1) == labels
                losses["class_error"] = 100 - 100 * correct.float().mean()
            counts = torch.as_tensor([len(t["labels"]) for t in targets], device=logits.device)
            found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
            losses["cardinality_error"] = F.l1_loss(found.float(), counts.float())
        return losses | self.box_losses(outputs, targets, indices, num_boxes)

    def box_losses(
        self, outputs: dict, targets: list[dict], indices: list, num_boxes: float
    ) -> dict[str, Tensor]:
        """One layer's: the GIoU of all pairs, of which the diagonal is used."""
        image = torch.cat([torch.full_like(i, b) for b, (i, _) in enumerate(indices)])
        query = torch.cat([i for i, _ in indices])
        predicted = outputs["pred_boxes"][image, query]
        wanted = torch.cat([t["boxes"][j] for t, (_, j) in zip(targets, indices, strict=True)])
        giou = checked_giou(
            box_convert(predicted, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
        )
        return {
            "loss_bbox": F.l1_loss(predicted, wanted, reduction="none").sum() / num_boxes,
            "loss_giou": (1 - torch.diag(giou)).sum() / num_boxes,
        }


def kind_of(name: str) -> str:
    """``loss_ce_3`` -> ``loss_ce``."""
    return name.rstrip("0123456789").rstrip("_")


def scaled(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses that are differentiated, times their weights."""
    return {
        name: WEIGHTS[kind_of(name)] * value
        for name, value in losses.items()
        if kind_of(name) in WEIGHTS
    }


def log(losses: dict[str, Tensor]) -> dict[str, float]:
    """Every loss scaled and unscaled, and their sum, read by the host as the published loop does.

    Raises:
        FloatingPointError: where the published loop exits: the loss is not finite.
    """
    weighted = scaled(losses)
    loss = sum(weighted.values()).item()
    if not math.isfinite(loss):
        raise FloatingPointError(f"loss is {loss}")
    values = {f"{name}_unscaled": value.item() for name, value in losses.items()}
    values |= {name: value.item() for name, value in weighted.items()}
    return {**values, "class_error": losses["class_error"].item(), "loss": loss}


def published_step(
    model: nn.Module,
    criterion: PublishedCriterion,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[], dict],
    targets: list[dict],
    mark: Callable[[str], None],
) -> float:
    """One step of the published training loop; ``mark`` is told the end of each phase."""
    outputs = forward()
    mark("forward")
    losses = criterion(outputs, targets)
    loss = sum(scaled(losses).values())
    values = log(losses)
    mark("loss")
    optimizer.zero_grad()
    loss.backward()
    mark("backward")
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    mark("optimizer")
    return values["loss"]
