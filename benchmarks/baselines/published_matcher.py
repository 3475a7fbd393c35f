"""The published DETR matcher's way of working.

One layer per call; costs of all queries of the batch against all targets of the batch, of which
only the diagonal blocks are used; SciPy per image.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou


class PublishedMatcher(nn.Module):
    def __init__(self, cost_class: float = 1, cost_bbox: float = 5, cost_giou: float = 2) -> None:
        super().__init__()
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou

    @torch.no_grad()
    def forward(self, outputs: dict, targets: list[dict]) -> list[tuple[Tensor, Tensor]]:
        b, n = outputs["pred_logits"].shape[:2]
        probability = outputs["pred_logits"].flatten(0, 1).softmax(-1)  # [B * N, K + 1]
        boxes = outputs["pred_boxes"].flatten(0, 1)  # [B * N, 4]
        labels = torch.cat([target["labels"] for target in targets])  # [T]
        target_boxes = torch.cat([target["boxes"] for target in targets])  # [T, 4]
        giou = generalized_box_iou(
            box_convert(boxes, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy")
        )
        cost = (
            self.cost_bbox * torch.cdist(boxes, target_boxes, p=1)
            - self.cost_class * probability[:, labels]
            - self.cost_giou * giou
        )
        cost = cost.view(b, n, -1).cpu()
        blocks = cost.split([len(target["boxes"]) for target in targets], -1)
        solved = [linear_sum_assignment(block[image]) for image, block in enumerate(blocks)]
        return [(torch.as_tensor(i), torch.as_tensor(j)) for i, j in solved]

    def match_layers(self, layers: list[dict], targets: list[dict]) -> list:
        return [self(layer, targets) for layer in layers]
