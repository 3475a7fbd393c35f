"""The published DETR loader's way of working, for training.

Pillow decodes the whole picture and makes every change of it; what comes out is scaled, normalised
and padded image by image in float32; targets stay dicts of small tensors, each copied by itself.
"""

import random

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert
from torchvision.transforms import functional as F

from detr_fast.data import IMAGENET_MEAN, IMAGENET_STD, Record

SHORT_SIDES = tuple(range(480, 801, 32))
Sample = tuple[Tensor, dict[str, Tensor]]


class PublishedDataset(Dataset):
    """Images and targets after the published training transforms."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        image = Image.open(record.path).convert("RGB")
        boxes = torch.as_tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor(record.labels)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        if random.random() < 0.5:
            image = F.hflip(image)
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
            boxes = boxes + torch.tensor([image.width, 0, image.width, 0])
        if random.random() < 0.5:
            image, boxes, area = _resize(image, boxes, area, random.choice(SHORT_SIDES), 1333)
        else:
            image, boxes, area = _resize(image, boxes, area, random.choice((400, 500, 600)))
            image, boxes, keep = _crop(image, boxes)
            boxes, labels, area = boxes[keep], labels[keep], area[keep]
            image, boxes, area = _resize(image, boxes, area, random.choice(SHORT_SIDES), 1333)
        pixels = F.normalize(F.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)
        height, width = pixels.shape[-2:]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        return pixels, {
            "boxes": box_convert(boxes, "xyxy", "cxcywh") / scale,
            "labels": labels,
            "image_id": torch.tensor([record.image_id]),
            "area": area,
            "iscrowd": torch.zeros(len(labels), dtype=torch.int64),
            "orig_size": torch.tensor([record.height, record.width]),
            "size": torch.tensor([height, width]),
        }


def _resize(
    image: Image.Image, boxes: Tensor, area: Tensor, short: int, longest: int | None = None
) -> tuple[Image.Image, Tensor, Tensor]:
    width, height = image.size
    low, high = min(width, height), max(width, height)
    if longest is not None and high / low * short > longest:
        short = round(longest * low / high)
    long = int(short * high / low)
    new_w, new_h = (long, short) if width >= height else (short, long)
    ratio_w, ratio_h = new_w / width, new_h / height
    boxes = boxes * torch.tensor([ratio_w, ratio_h, ratio_w, ratio_h])
    return F.resize(image, [new_h, new_w]), boxes, area * (ratio_w * ratio_h)


def _crop(image: Image.Image, boxes: Tensor) -> tuple[Image.Image, Tensor, Tensor]:
    new_w = random.randint(min(384, image.width), min(image.width, 600))
    new_h = random.randint(min(384, image.height), min(image.height, 600))
    top = random.randint(0, image.height - new_h)
    left = random.randint(0, image.width - new_w)
    boxes = boxes - torch.tensor([left, top, left, top])
    corners = boxes.reshape(-1, 2, 2).clamp(min=0)
    corners = torch.min(corners, torch.tensor([new_w, new_h], dtype=torch.float32))
    keep = (corners[:, 1] > corners[:, 0]).all(1)
    return F.crop(image, top, left, new_h, new_w), corners.reshape(-1, 4), keep


def published_collate(batch: list[Sample]) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Images padded with 0, the mask of the padding, and the targets as they are."""
    images, targets = zip(*batch, strict=True)
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    padded = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for image, room, hidden in zip(images, padded, mask, strict=True):
        room[:, : image.shape[1], : image.shape[2]].copy_(image)
        hidden[: image.shape[1], : image.shape[2]] = False
    return padded, mask, list(targets)


def published_to_device(batch: tuple, device: torch.device) -> tuple:
    """Every tensor by itself, from pageable memory."""
    images, mask, targets = batch
    return (
        images.to(device),
        mask.to(device),
        [{name: value.to(device) for name, value in target.items()} for target in targets],
    )
