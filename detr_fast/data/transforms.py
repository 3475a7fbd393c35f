"""Recipes: make of an image and its pixel boxes what the model and the criterion need.

Each function returns a :class:`Recipe`, called as ``recipe(image, target)``. Whatever
its steps are, it returns::

    image   float32 [3, H, W], scaled to 0..1, then ImageNet's mean and std
    target  boxes      float32 [M, 4], cxcywh in 0..1 of this image
            labels     int64 [M]
            image_id, orig_size   unchanged
            size       int64 [2], (height, width) of this image

Random numbers come from torch's global generator, which DataLoader seeds in each worker.

With ``normalize=False`` the image stays uint8 unless a step needs it in float. It then takes a
quarter of the memory on its way to the model, and :func:`normalize` does the rest for a whole batch
on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from detr_fast.data.augment import (
    ColorJitter,
    Finish,
    OneOf,
    RandomSizeCrop,
    RandomZoom,
    Resize,
    ResizeShortSide,
    Sanitize,
    Target,
    decode,
)
from detr_fast.data.images import ImageFile

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_SHORT_SIDES = tuple(range(480, 801, 32))

Step = Callable[[Tensor, Target | None], tuple[Tensor, Target | None]]
Size = int | tuple[int, int] | None


class Recipe:
    """Steps applied in turn. For prediction, call ``recipe(image)`` without a target.

    ``image`` is uint8 ``[3, H, W]`` RGB, ``target`` as :class:`DetectionDataset` makes it, or None.
    Neither is changed in place. An :class:`ImageFile` is decoded by the first step, at a fraction
    of its size if that step shrinks it further; pixels then differ a little from the image decoded
    at full size.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = list(steps)

    def __call__(
        self, image: Tensor | ImageFile, target: Target | None = None
    ) -> tuple[Tensor, Target | None]:
        target = None if target is None else dict(target)
        if not self._decodes():
            image, target = decode(image, target)
        if isinstance(image, Tensor):
            image = tv_tensors.Image(image)
        for step in self.steps:
            image, target = step(image, target)
        return image, target

    def useful_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size, (height, width), beyond which the recipe needs no pixels of the image.

        An image shrunk to it beforehand gives the same result if the recipe resizes to one size,
        and nearly the same if size or zoom are random.
        """
        return self.steps[0].useful_size(height, width) if self._decodes() else (height, width)

    def _decodes(self) -> bool:
        return bool(self.steps) and hasattr(self.steps[0], "useful_size")

    def __repr__(self) -> str:
        return "Recipe(\n" + "".join(f"    {step!r}\n" for step in self.steps) + ")"


def detr_train(*, normalize: bool = True) -> Recipe:
    """Return the published training recipe: resize, or resize, crop and resize; then flip.

    (The published one flips first: this is equivalent, but would decode the image at full size.)
    """
    resize = ResizeShortSide(_SHORT_SIDES, longest=1333)
    crop = [ResizeShortSide((400, 500, 600)), RandomSizeCrop(384, 600), resize]
    return Recipe(
        [OneOf([resize], crop), v2.RandomHorizontalFlip(), Sanitize(), _finish(normalize)]
    )


def detr_eval(short: int = 800, longest: int | None = 1333, *, normalize: bool = True) -> Recipe:
    """Return the published evaluation recipe: shorter side ``short``, longer <= ``longest``."""
    return Recipe([ResizeShortSide((short,), longest), _finish(normalize)])


def small_train(
    size: Size,
    *,
    flip: bool = True,
    vertical: bool = False,
    zoom: tuple[float, float] = (0.75, 1.35),
    stretch: float = 0.1,
    min_visible: float = 0.3,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    hue: float = 0.02,
    normalize: bool = True,
) -> Recipe:
    """Return a recipe for training on small images: zoom and shift, flip, colour jitter.

    Args:
        size: of all results, ``(height, width)`` or one number for both; None keeps each image's.
        flip: mirror half of the images left to right.
        vertical: also mirror half of them upside down, for pictures without an up and down.
        zoom: range of the scale, drawn log-uniformly: above 1 a part of the image is enlarged,
            below 1 the image is shrunk onto a grey background. ``(1, 1)`` switches it off.
        stretch: the ratio of width to height changes by up to this fraction, either way.
        min_visible: a box with less than this fraction of its area left is removed.
        brightness: factor in ``1 +- brightness``; likewise ``contrast`` and ``saturation``.
        hue: rotation of the colour circle, within ``+- hue`` full turns.
        normalize: see above; no effect if a change of colours has made the image float.
    """
    steps: list[Step] = [RandomZoom(_pair(size), zoom, stretch, min_visible)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if vertical:
        steps.append(v2.RandomVerticalFlip())
    if max(brightness, contrast, saturation, hue) > 0:
        steps.append(ColorJitter(brightness, contrast, saturation, hue))
    return Recipe([*steps, _finish(normalize)])


def fixed_eval(size: Size, *, normalize: bool = True) -> Recipe:
    """Return a recipe that resizes to ``size``: (height, width), one number, or None: keep it."""
    return Recipe([Resize(_pair(size)), _finish(normalize)])


def normalize(
    images: Tensor,  # uint8 [B, 3, H, W]
    mask: Tensor | None = None,  # bool [B, H, W], True = padding, at the bottom and the right
) -> Tensor:
    """Normalise a batch as recipes normalise each image at their end: float32, padding 0."""
    b, _, height, width = images.shape
    # Computed in rows of 3 * W numbers: several times faster than in groups of three. The
    # operations and their order are the same as in Finish, so that every digit agrees.
    mean, std = (_row(values, width, images.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    rows = images.permute(0, 2, 3, 1).reshape(b, height, 3 * width)
    rows = rows.to(torch.float32).mul_(1 / 255).sub_(mean).div_(std)
    images = rows.view(b, height, width, 3).permute(0, 3, 1, 2)
    if mask is None:
        return images
    if not mask.is_cpu:
        return images.masked_fill_(mask[:, None], 0)
    for image, hidden in zip(images, mask, strict=True):  # much faster on a CPU
        image[:, int((~hidden[:, 0]).sum()) :] = 0
        image[:, :, int((~hidden[0]).sum()) :] = 0
    return images


def _row(values: Sequence[float], width: int, device: torch.device) -> Tensor:
    """Return the three values repeated, [3 * width]; filled in place: no copy, no wait."""
    row = torch.empty(width, 3, device=device)
    for channel, value in enumerate(values):
        row[:, channel] = value
    return row.view(-1)


def denormalize(image: Tensor) -> Tensor:
    """Undo mean and std: ``[3, H, W]`` or ``[B, 3, H, W]`` back to float 0..1, for showing it."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=image.dtype, device=image.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=image.dtype, device=image.device).view(3, 1, 1)
    return (image * std + mean).clamp(0, 1)


def _finish(normalize: bool) -> Finish:
    return Finish(IMAGENET_MEAN, IMAGENET_STD, normalize)


def _pair(size: Size) -> tuple[int, int] | None:
    pair = (size, size) if isinstance(size, int) else size
    if pair is not None and (len(pair) != 2 or min(pair) < 1):
        raise ValueError(f"size must be a number of pixels or (height, width), got {size!r}")
    return pair if pair is None else (int(pair[0]), int(pair[1]))
