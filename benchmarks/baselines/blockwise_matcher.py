"""The best that torch and SciPy do without compiled code.

Targets are padded to the longest image, so that one batched computation gives every layer's and
image's own block; SciPy solves block by block.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


def corners(boxes: Tensor) -> Tensor:  # [..., 4] cxcywh -> xyxy
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:  # [..., N, 4], [..., M, 4] xyxy -> [..., N, M]
    a, b = a.unsqueeze(-2), b.unsqueeze(-3)
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    overlap, hull = sides.prod(-1), hull.prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    union = area_a + area_b - overlap
    return overlap / union - (hull - union) / hull


class BlockwiseMatcher(nn.Module):
    def __init__(self, cost_class: float = 1, cost_bbox: float = 5, cost_giou: float = 2) -> None:
        super().__init__()
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou

    @torch.no_grad()
    def match_layers(self, layers: list[dict], targets: list[dict]) -> list:
        sizes = [len(target["labels"]) for target in targets]
        labels = pad_sequence([target["labels"] for target in targets], batch_first=True)  # [B, M]
        # Padded boxes are points; their costs are computed and dropped.
        boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True)  # [B, M, 4]
        logits = torch.stack([layer["pred_logits"] for layer in layers])  # [L, B, N, K + 1]
        predicted = torch.stack([layer["pred_boxes"] for layer in layers])  # [L, B, N, 4]
        index = labels[None, :, None].expand(*logits.shape[:3], -1)  # [L, B, N, M]
        probability = logits.softmax(-1).gather(-1, index)
        distance = torch.cdist(predicted, boxes.expand(len(layers), -1, -1, -1), p=1)
        giou = pairwise_giou(corners(predicted), corners(boxes))
        cost = (
            self.cost_bbox * distance - self.cost_class * probability - self.cost_giou * giou
        ).cpu()
        matches = []
        for layer in cost.numpy():
            solved = [linear_sum_assignment(c[:, :m]) for c, m in zip(layer, sizes, strict=True)]
            matches.append([(torch.as_tensor(i), torch.as_tensor(j)) for i, j in solved])
        return matches
