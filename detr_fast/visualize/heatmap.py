"""From the cells of a feature map to the pixels of a picture, and back."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class CellGrid:
    """Where the cells of one image's feature map lie in its picture.

    The backbones here are made of odd kernels with symmetric padding, so that the receptive field
    of the cell in row i and column j is centred on pixel (s * i, s * j) of the model's input, s
    being the stride. Stretching the map over the image, as is often done, would be off by up to
    half a cell. The picture may have another size and shape than the input that was made from it.

    Args:
        feature_size: (h, w) of the feature map.
        image_size: (height, width) of the model's input, in pixels, without padding.
        picture_size: (height, width) of the picture to draw on.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        feature_size: tuple[int, int],
        image_size: tuple[int, int],
        picture_size: tuple[int, int],
    ) -> None:
        for name, size in (
            ("feature_size", feature_size),
            ("image_size", image_size),
            ("picture_size", picture_size),
        ):
            if min(size) < 1:
                raise ValueError(f"{name} is {tuple(size)}, expected at least 1 x 1")
        self.feature_size = tuple(feature_size)
        self.image_size = tuple(image_size)
        self.picture_size = tuple(picture_size)
        self.stride = _stride(feature_size, image_size)

    def to_picture(self, maps: Tensor) -> Tensor:
        """Interpolate values of cells [..., h, w] bilinearly at the picture's pixels [..., H, W].

        In float32 at least, even if the caller uses autocast.
        """
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        rows, columns = (self._weights(axis).to(maps) for axis in (0, 1))
        with torch.autocast(maps.device.type, enabled=False):
            return rows @ maps @ columns.T

    def cell_at(self, x: float, y: float) -> tuple[int, int]:
        """Return (row, column) of the cell centred nearest to a point (x, y) in picture pixels."""
        indices = []
        for axis, position in enumerate((y, x)):
            scale = self.image_size[axis] / self.picture_size[axis]
            cell = round((position * scale - 0.5) / self.stride[axis])
            indices.append(min(max(cell, 0), self.feature_size[axis] - 1))
        return indices[0], indices[1]

    def _weights(self, axis: int) -> Tensor:  # [pixels, cells], rows sum to 1
        size, cells = self.picture_size[axis], self.feature_size[axis]
        pixel = (torch.arange(size) + 0.5) * (self.image_size[axis] / size) - 0.5
        place = (pixel / self.stride[axis]).clamp(0, cells - 1)
        low = place.floor().long()
        high = (low + 1).clamp(max=cells - 1)
        weights = torch.zeros(size, cells)
        index = torch.arange(size)
        weights[index, low] += 1 - (place - low)
        weights[index, high] += place - low
        return weights


def _stride(feature_size: tuple[int, int], image_size: tuple[int, int]) -> tuple[float, float]:
    """Return the power of two that fits these sizes; if none does, their ratio."""
    for power in range(10):
        stride = 2**power
        if all(
            math.ceil(pixels / stride) == cells
            for pixels, cells in zip(image_size, feature_size, strict=True)
        ):
            return stride, stride
    return tuple(p / c for p, c in zip(image_size, feature_size, strict=True))


def overlay(picture: Image.Image, heat: Tensor | np.ndarray) -> np.ndarray:
    """Return the picture in dark grey with the heat in colour over it: uint8 [H, W, 3].

    Args:
        heat: [H, W] of the picture's size, not negative; its largest value is the brightest.
    """
    import matplotlib

    heat = np.asarray(heat, dtype=np.float64)
    if heat.shape != (picture.height, picture.width):
        raise ValueError(
            f"heat is {list(heat.shape)}, but the picture {[picture.height, picture.width]}"
        )
    share = heat / max(float(heat.max()), 1e-12)
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None] * np.ones(3) / 255
    # The upper part of the colour map: its black would hide the picture.
    colour = matplotlib.colormaps["inferno"](0.25 + 0.75 * share)[..., :3]
    strength = (share**0.7)[..., None] * 0.85
    return ((grey * 0.6 * (1 - strength) + colour * strength) * 255).round().astype(np.uint8)
