"""Padding images of different sizes into one batch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def pad_images(images: list[Tensor], multiple_of: int = 1) -> tuple[Tensor, Tensor | None]:
    """Pad images at the bottom and right to the largest height and width among them.

    Args:
        images: B tensors [3, H_b, W_b] of one dtype and device.
        multiple_of: round the padded height and width up to a multiple of this many pixels.

    Returns:
        The batch [B, 3, H, W], zero where padded, the three colours of a pixel side by side in
        memory (``torch.channels_last``); and a bool mask [B, H, W], True where padded, or None
        where nothing is: decided from the sizes, so that later code need not read the mask.

    Raises:
        ValueError: no image at all, or one that is not [3, H, W]; the message names it.
    """
    if not images:
        raise ValueError("pad_images needs at least one image, got an empty list")
    for b, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"images[{b}] has shape {list(image.shape)}, expected [3, H, W]")
    height = -(-max(image.shape[1] for image in images) // multiple_of) * multiple_of
    width = -(-max(image.shape[2] for image in images) // multiple_of) * multiple_of
    # The layout in which convolutions are fastest.
    batch = images[0].new_zeros(len(images), height, width, 3).permute(0, 3, 1, 2)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for b, image in enumerate(images):
        _, h, w = image.shape
        batch[b, :, :h, :w] = image
        mask[b, :h, :w] = False
    is_padded = any(image.shape[1:] != (height, width) for image in images)
    return batch, mask if is_padded else None


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A padding mask [B, H, W] at the resolution of a feature map: [B, h, w], by nearest pixel."""
    return F.interpolate(mask[:, None].float(), size=size)[:, 0] > 0.5
