"""Pictures of a model's predictions in a data set."""

import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as F

from ..data import DetectionDataset, collate, denormalize, to_device
from ..models import PostProcess
from ..precision import autocast
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
        images, _, _ = to_device(collate([dataset[index]]), device)
        with autocast(device, amp):
            outputs = model(images)
        size = torch.tensor([images.shape[-2:]], device=device)
        found = {k: v.cpu() for k, v in postprocess(outputs, size)[0].items()}
        picture, factor = enlarge(F.to_pil_image(denormalize(images[0]).cpu()), cell)
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
