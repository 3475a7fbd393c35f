"""Box maths between pairs, differentiable; formats are converted by ``torchvision.ops``."""

import torch
from torch import Tensor


def paired_giou(
    boxes1: Tensor,  # [P, 4] xyxy
    boxes2: Tensor,  # [P, 4] xyxy
) -> Tensor:  # [P] in -1..1
    """Generalised IoU of the p-th box of one list with the p-th of the other.

    Linear in P, where the diagonal of a pairwise matrix costs P squared (Rezatofighi et al. 2019;
    paper, appendix A.2). Pairs of two empty boxes at one place, which have no union, give 0.
    """
    area1 = (boxes1[:, 2:] - boxes1[:, :2]).prod(-1)
    area2 = (boxes2[:, 2:] - boxes2[:, :2]).prod(-1)
    overlap = torch.minimum(boxes1[:, 2:], boxes2[:, 2:]) - torch.maximum(
        boxes1[:, :2], boxes2[:, :2]
    )
    intersection = overlap.clamp(min=0).prod(-1)
    union = area1 + area2 - intersection
    hull = torch.maximum(boxes1[:, 2:], boxes2[:, 2:]) - torch.minimum(boxes1[:, :2], boxes2[:, :2])
    hull_area = hull.prod(-1)
    # Guard the denominators, not the result: dividing by zero would poison the gradient.
    iou = intersection / torch.where(union > 0, union, 1.0)
    empty_share = (hull_area - union) / torch.where(hull_area > 0, hull_area, 1.0)
    return iou - empty_share
