"""One image's detections against its targets: a number to sort images by, and a picture."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from detr_fast.ops import box_iou, linear_sum_assignment
from detr_fast.visualize.detections import draw_detections
from detr_fast.visualize.pictures import image_grid, scaled

SCORE = 0.5  # lowest score of a detection that counts, and is drawn
SIDE = 300  # pixels of the longer side of each of the two pictures


def image_quality(
    found: Mapping[str, Tensor],  # scores [n], labels [n], boxes [n, 4] xyxy in pixels
    labels: Tensor,  # [M]
    boxes: Tensor,  # [M, 4] xyxy in the same pixels
) -> float:
    """Rate one image's detections, 0..1, to sort images by.

    Detections of ``SCORE`` or more are paired one to one with targets of the same class, for the
    greatest sum of IoU. It is divided by the number of detections or of targets, whichever is
    larger, so that misses and false alarms count alike. 1 with neither targets nor detections.
    """
    keep = found["scores"] >= SCORE
    most = max(int(keep.sum()), len(labels))
    if most == 0:
        return 1.0
    if not keep.any() or not len(labels):
        return 0.0
    iou = box_iou(found["boxes"][keep].float(), boxes.float())
    iou = iou * (found["labels"][keep][:, None] == labels)
    rows, columns = linear_sum_assignment(iou.numpy(), maximize=True)
    return float(iou[rows, columns].sum()) / most


def truth_and_detections(
    picture: Image.Image,
    labels: Tensor,  # [M]
    boxes: Tensor,  # [M, 4] cxcywh in 0..1
    found: Mapping[str, Tensor],  # with boxes xyxy in 0..1
    class_names: Sequence[str],
) -> Image.Image:
    """Draw targets on the left, detections of ``SCORE`` or more on the right."""
    shown, _ = scaled(picture, SIDE)
    scale = torch.tensor([shown.width, shown.height] * 2)
    keep = found["scores"] >= SCORE
    truth = draw_detections(
        shown, box_convert(boxes, "cxcywh", "xyxy") * scale, labels, class_names
    )
    detections = draw_detections(
        shown,
        found["boxes"][keep] * scale,
        found["labels"][keep],
        class_names,
        found["scores"][keep],
    )
    return image_grid([truth, detections], 2, gap=4)
