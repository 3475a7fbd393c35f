"""Pictures of a model's predictions in a data set, and its images as model and reader want them."""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from ..data import DetectionDataset, denormalize
from ..models import PostProcess
from ..precision import autocast
from ..training.loader import make_loader
from ..visualize import draw_detections, enlarge, image_grid


@torch.no_grad()
def prediction_grid(
    model: nn.Module,
    dataset: DetectionDataset,
    device: torch.device,
    amp: torch.dtype | None = None,
    images: int = 12,
    score_threshold: float = 0.5,
    cell: int = 320,
) -> Image.Image:
    """Detections in the first images of a data set, as the model saw them, four in a row."""
    model.eval()
    postprocess = PostProcess(score_threshold)
    cells = []
    for index in range(min(images, len(dataset))):
        image, _ = dataset[index]
        with autocast(device, amp):
            outputs = model(image[None].to(device))
        size = torch.tensor([image.shape[-2:]], device=device)
        found = {k: v.cpu() for k, v in postprocess(outputs, size)[0].items()}
        picture, factor = enlarge(F.to_pil_image(denormalize(image)), cell)
        cells.append(
            draw_detections(
                picture,
                found["boxes"] * factor,
                found["labels"],
                dataset.class_names,
                found["scores"],
            )
        )
    return image_grid(cells, columns=4)


def batches(
    dataset: torch.utils.data.Dataset, device: torch.device, size: int = 16
) -> Iterator[tuple[Tensor, Tensor | None, list[dict[str, Tensor]]]]:
    """Batches on the device as the model takes them: images, mask or None, targets."""
    for images, mask, targets in make_loader(dataset, 0, batch_size=size):
        yield images.to(device), mask.to(device) if mask.any() else None, targets


def as_picture(image: Tensor) -> Image.Image:
    """What the model was given, [3, H, W], as it looked before normalisation."""
    return F.to_pil_image(denormalize(image).cpu())
