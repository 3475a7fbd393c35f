"""A batch from single images: padding at the bottom and the right, and the mask that tells."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detr_fast.models.padding import pad_images

Target = dict[str, Tensor]


def collate(
    batch: Sequence[tuple[Tensor, Target]], pad_to_multiple: int = 1
) -> tuple[Tensor, Tensor, list[Target]]:
    """For ``DataLoader(collate_fn=collate)``.

    Args:
        batch: B pairs of a float32 image ``[3, H_b, W_b]`` and its target.
        pad_to_multiple: H and W of the batch are rounded up to multiples of this.

    Returns:
        images float32 ``[B, 3, H, W]``, padded with 0 at the bottom and the right; mask bool
        ``[B, H, W]``, True = padding; the B targets, unchanged.
    """
    images, targets = zip(*batch, strict=True)
    padded, mask = pad_images(list(images), pad_to_multiple)
    return padded, mask, list(targets)
