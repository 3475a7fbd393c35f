"""Pictures of predictions in a data set, and its images as model inputs and as pictures."""

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from detr_fast.data import DetectionDataset, Prefetcher, collate, denormalize, to_device
from detr_fast.data.loader import make_loader
from detr_fast.evaluation import detect_batch
from detr_fast.files import written_whole
from detr_fast.visualize import draw_detections, image_grid, scaled

IMAGES = 12  # of a grid
CELL = 320  # pixels of the longer side of each
SCORE = 0.5  # lowest score of a detection drawn


def prediction_grid(
    model: nn.Module,
    dataset: DetectionDataset,
    device: torch.device,
    amp: torch.dtype | None = None,
) -> Image.Image:
    """Draw detections in the first images of a data set, as the model saw them, four in a row.

    Of ``IMAGES`` images, those of ``SCORE`` or more.
    """
    model.eval()
    cells = []
    for index in range(min(IMAGES, len(dataset))):
        image, _, _ = to_device(collate([dataset[index]]), device)
        size = torch.tensor([image.shape[-2:]])
        detections = detect_batch(model, image, None, size, amp, SCORE)[0]
        picture, factor = scaled(as_picture(image[0]), CELL)
        cells.append(
            draw_detections(
                picture,
                detections["boxes"] * factor,
                detections["labels"],
                dataset.class_names,
                detections["scores"],
            )
        )
    return image_grid(cells, columns=4)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of its name's ending; after an error an old one is whole."""
    with written_whole(path) as temporary:
        picture.save(temporary, Image.registered_extensions()[path.suffix.lower()])


def batches(
    dataset: torch.utils.data.Dataset, device: torch.device, size: int
) -> Iterator[tuple[Tensor, Tensor | None, list[dict[str, Tensor]]]]:
    """Yield batches on the device as the model takes them: images, mask or None, targets."""
    yield from Prefetcher(device).batches(make_loader(dataset, 0, batch_size=size))


def as_picture(image: Tensor) -> Image.Image:
    """Return a model's input, [3, H, W], as the picture that it was before normalisation."""
    return F.to_pil_image(denormalize(image).cpu())
