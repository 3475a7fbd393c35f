"""A trained model, ready to detect objects in pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from detr_fast.data.images import read_image, to_pixels
from detr_fast.evaluation import check_finite, detect_batch
from detr_fast.precision import amp_dtype
from detr_fast.training import TrainConfig, load_model, load_trained
from detr_fast.training.recipes import eval_recipe


class Detector:
    """What a checkpoint needs to detect objects: its model, transforms and classes.

    Args:
        checkpoint: as ``load_trained`` returns it.
        device: where the model runs; default: a GPU if there is one.
        amp: ``"none"``, ``"bf16"`` or ``"auto"``; default: as in training.

    Attributes:
        model: in evaluation mode, on ``device``.
        class_names, category_ids: of each label.

    Raises:
        CheckpointError: the checkpoint has no model of this version.
    """

    def __init__(
        self,
        checkpoint: dict[str, Any],
        device: torch.device | str | None = None,
        amp: str | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        config = TrainConfig.from_dict(checkpoint["config"])
        self.amp = amp_dtype(amp or config.amp, self.device)
        self.model = load_model(checkpoint).to(self.device)
        self.class_names: list[str] = checkpoint["class_names"]
        self.category_ids: list[int] = checkpoint["category_ids"]
        self._recipe = eval_recipe(config)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str | None = None,
        amp: str | None = None,
    ) -> Detector:
        """Load a run's folder (its ``best.pt``), a checkpoint, or one of the published DETR code.

        Raises:
            CheckpointError: see ``load_trained``.
        """
        return cls(load_trained(path), device, amp)

    def __call__(
        self, picture: str | Path | Image.Image | Tensor, threshold: float = 0.5
    ) -> dict[str, Tensor]:
        """Detect objects in one picture.

        Args:
            picture: a file, a Pillow image, or RGB pixels, uint8 [3, H, W]. Files and Pillow images
                are turned upright by their EXIF tag.
            threshold: lowest score.

        Returns:
            ``scores`` [n], ``labels`` [n] and ``boxes`` [n, 4], xyxy in the picture's pixels and
            within it; surest first, on the CPU.

        Raises:
            DataError: a picture that cannot be read; the message names the file.
            PredictionError: the model finds scores or boxes that are not finite.
            ValueError: a tensor that is not such pixels, no pixels at all, or a threshold that is
                not in 0..1.
            TypeError: anything else, such as an array.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, expected a score, 0..1")
        if isinstance(picture, Tensor):
            pixels = picture
            if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != 3:
                raise ValueError(
                    f"the picture is {pixels.dtype} {list(pixels.shape)}, expected uint8 [3, H, W]"
                )
        elif isinstance(picture, Image.Image):
            pixels = to_pixels(picture)
        elif isinstance(picture, (str, os.PathLike)) or hasattr(picture, "read"):
            pixels = read_image(picture)
        else:
            raise TypeError(
                f"the picture is a {type(picture).__name__}, expected a file, a Pillow image, or a "
                "tensor uint8 [3, H, W], RGB"
            )
        if not pixels.numel():
            raise ValueError(f"the picture has no pixels: it is {list(pixels.shape)}")
        return self.detect(self.prepare(pixels), tuple(pixels.shape[1:]), threshold)

    def prepare(
        self,
        pixels: Tensor,  # uint8 [3, H, W]
    ) -> Tensor:  # [1, 3, h, w]
        """Return the model's input, as in evaluation."""
        return self._recipe(pixels)[0][None].to(self.device)

    def detect(
        self,
        images: Tensor,  # [1, 3, h, w], of prepare
        size: tuple[int, int],
        threshold: float,
    ) -> dict[str, Tensor]:
        """Return what a call returns, for the picture of ``size`` (H, W) that was prepared."""
        (found,) = detect_batch(self.model, images, None, torch.tensor([size]), self.amp, threshold)
        check_finite(found)
        order = found["scores"].argsort(descending=True)
        found = {name: values[order] for name, values in found.items()}
        return found | {"boxes": clip_boxes_to_image(found["boxes"], size)}
