"""Batches of images: padding at the bottom and the right, and the mask that marks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from detr_fast.data.augment import Target
from detr_fast.matching import PackedTargets
from detr_fast.models.padding import pad_images


class Batch(NamedTuple):
    """What a loader yields: B images, the mask of their padding, and their targets."""

    images: Tensor  # [B, 3, H, W], float32 normalised, or uint8 as decoded
    mask: Tensor | None  # bool [B, H, W], True = padding; None: no padding
    targets: list[Target] | PackedTargets


def collate(
    batch: Sequence[tuple[Tensor, Target]], pad_to_multiple: int = 1, pack: bool = False
) -> Batch:
    """Make a batch; for ``DataLoader(collate_fn=collate)``.

    Args:
        batch: B pairs of an image ``[3, H_b, W_b]``, float32 or uint8, and its target.
        pad_to_multiple: H and W of the batch are rounded up to multiples of this.
        pack: return the targets as :class:`PackedTargets`: labels and boxes, in one buffer.

    Returns:
        images and mask as :func:`pad_images` returns them; the B targets, unchanged, or packed.
    """
    images, targets = zip(*batch, strict=True)
    padded, mask = pad_images(list(images), pad_to_multiple)
    return Batch(padded, mask, PackedTargets.pack(targets) if pack else list(targets))
