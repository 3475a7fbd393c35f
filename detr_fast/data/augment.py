"""The individual steps that recipes consist of: ``step(image, target) -> (image, target)``.

Images are ``tv_tensors.Image`` [3, H, W], uint8 until :class:`ColorJitter` or :class:`Finish`;
boxes are ``tv_tensors.BoundingBoxes`` xyxy in pixels until :class:`Finish`; ``target`` may be None.
The steps are plain callables: the classes of transforms v2 changed their hooks between releases.

Pixels may be on any device; boxes and random numbers are on the CPU.

Steps with a ``useful_size`` also accept an :class:`ImageFile` and decode it no larger than needed.
``useful_size(height, width)`` is the size to which an image of (height, width) may be shrunk
beforehand: the result is the same where the step resizes to one size, and nearly so otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from detr_fast.data.images import ImageFile

Target = dict[str, Tensor]
Pair = tuple[Tensor, Target | None]

_GROUND = (124, 116, 104)  # ImageNet's mean colour, close to 0 once normalised
_LUMA = (0.299, 0.587, 0.114)


def decode(
    image: Tensor | ImageFile, target: Target | None, at_least: tuple[int, int] | None = None
) -> Pair:
    """Decode a file, at 1/2, 1/4 or 1/8 of its size where that leaves ``at_least``.

    Boxes are scaled with the pixels. An image that is already decoded is returned unchanged.
    """
    if isinstance(image, Tensor):
        return image, target
    pixels, divisor = image.read(at_least)
    if target is not None and divisor > 1:
        boxes = target["boxes"].as_subclass(Tensor) / divisor
        size = tuple(pixels.shape[-2:])
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        target = {**target, "boxes": boxes}
    return tv_tensors.Image(pixels), target


class Resize:
    """Resize to exactly ``size`` (height, width); None keeps the size."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size

    def __call__(self, image: Tensor, target: Target | None) -> Pair:
        if self.size is None or tuple(image.shape[-2:]) == self.size:
            return decode(image, target)
        return _resize(image, target, self.size)

    def useful_size(self, height: int, width: int) -> tuple[int, int]:
        return _smaller((height, width), self.size)

    def __repr__(self) -> str:
        return f"Resize({self.size})"


class ResizeShortSide:
    """Resize the shorter side to one of ``sizes``, or less if the longer would exceed ``longest``.

    This is the published DETR's rule, to the pixel; torchvision's differs. The longer side is
    computed from the rounded shorter one, so it may exceed ``longest``: by a pixel or two, or by
    more if the image is very thin.
    """

    def __init__(self, sizes: Sequence[int], longest: int | None = None) -> None:
        self.sizes = tuple(sizes)
        self.longest = longest

    def __call__(self, image: Tensor, target: Target | None) -> Pair:
        short = self.sizes[_randint(0, len(self.sizes) - 1)]
        return _resize(image, target, self.new_size(image.shape[-2], image.shape[-1], short))

    def new_size(self, height: int, width: int, short: int) -> tuple[int, int]:
        """Return (height, width) of the result."""
        low, high = min(height, width), max(height, width)
        long = int(short * high / low)
        if self.longest is not None and high / low * short > self.longest:
            # Where the published rule rounds the short side to 0, use 1 and 2 * longest.
            short = max(1, round(self.longest * low / high))
            long = min(int(short * high / low), 2 * self.longest)
        return (short, long) if height <= width else (long, short)

    def useful_size(self, height: int, width: int) -> tuple[int, int]:
        return _smaller((height, width), self.new_size(height, width, max(self.sizes)))

    def __repr__(self) -> str:
        return f"ResizeShortSide({self.sizes}, longest={self.longest})"


class RandomSizeCrop:
    """Cut out a random rectangle whose sides are ``low`` to ``high`` pixels, within the image."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Tensor, target: Target | None) -> Pair:
        height, width = image.shape[-2:]
        new_h = _randint(min(self.low, height), min(self.high, height))
        new_w = _randint(min(self.low, width), min(self.high, width))
        top, left = _randint(0, height - new_h), _randint(0, width - new_w)
        image = F.crop(image, top, left, new_h, new_w)
        if target is not None:
            boxes = F.crop(target["boxes"], top, left, new_h, new_w)
            target = {**target, "boxes": boxes}
        return image, target

    def __repr__(self) -> str:
        return f"RandomSizeCrop({self.low}, {self.high})"


class RandomZoom:
    """Enlarge a random part, or shrink the whole onto a plain background, in one resize.

    A window of ``1 / zoom`` of the image's sides is put at a random place (overlapping the image
    as far as possible) and becomes the result, of ``size`` (height, width) or the image's own.
    Boxes move with the pixels; those with less than ``min_visible`` of their area left are removed,
    with their labels.
    """

    def __init__(
        self,
        size: tuple[int, int] | None,
        zoom: tuple[float, float],
        stretch: float,
        min_visible: float,
    ) -> None:
        if not 0 < zoom[0] <= zoom[1] or stretch < 0:
            raise ValueError(f"zoom {zoom} must be 0 < low <= high, and stretch {stretch} >= 0")
        self.size, self.zoom = size, zoom
        self.stretch, self.min_visible = stretch, min_visible

    def __call__(self, image: Tensor, target: Target | None) -> Pair:
        out_h, out_w = self.size or image.shape[-2:]
        zoom = math.exp(_uniform(math.log(self.zoom[0]), math.log(self.zoom[1])))
        ratio = math.exp(_uniform(-1, 1) * math.log1p(self.stretch) / 2)
        needed = math.ceil(out_h * zoom / ratio), math.ceil(out_w * zoom * ratio)
        image, target = decode(image, target, needed)
        height, width = image.shape[-2:]
        x0, x1, left, right = _window(width, width / (zoom * ratio), out_w)
        y0, y1, top, bottom = _window(height, height / (zoom / ratio), out_h)

        part = F.resize(image[:, y0:y1, x0:x1], [bottom - top, right - left], antialias=True)
        if part.shape[-2:] != (out_h, out_w):
            ground = torch.tensor(_GROUND, dtype=torch.uint8, device=part.device)
            canvas = ground.expand(out_h, out_w, 3).contiguous().permute(2, 0, 1)
            canvas[:, top:bottom, left:right] = part
            part = canvas
        if target is not None:
            boxes = target["boxes"].as_subclass(Tensor)
            scale_x, scale_y = (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)
            scale = boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
            shift = boxes.new_tensor([left, top, left, top]) - scale * boxes.new_tensor(
                [x0, y0, x0, y0]
            )
            moved = torch.addcmul(shift, boxes, scale)
            edges = boxes.new_tensor([left, top, right, bottom])
            target = _keep_visible(target, moved, edges, (out_h, out_w), self.min_visible)
        return tv_tensors.Image(part), target

    def useful_size(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        most = self.zoom[1] * math.sqrt(1 + self.stretch)
        return (
            min(height, math.ceil(self.size[0] * most)),
            min(width, math.ceil(self.size[1] * most)),
        )

    def __repr__(self) -> str:
        return (
            f"RandomZoom({self.size}, zoom={self.zoom}, stretch={self.stretch}, "
            f"min_visible={self.min_visible})"
        )


class OneOf:
    """One of several chains of steps, drawn for each image; the first step of each decodes."""

    def __init__(self, *chains: Sequence[Callable]) -> None:
        self.chains = [list(chain) for chain in chains]

    def __call__(self, image: Tensor, target: Target | None) -> Pair:
        for step in self.chains[_randint(0, len(self.chains) - 1)]:
            image, target = step(image, target)
        return image, target

    def useful_size(self, height: int, width: int) -> tuple[int, int]:
        sizes = [chain[0].useful_size(height, width) for chain in self.chains]
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    def __repr__(self) -> str:
        return f"OneOf({', '.join(map(repr, self.chains))})"


class Sanitize:
    """Cut boxes to the image and remove those without area, with their labels."""

    def __call__(self, image: Tensor, target: Target | None) -> Pair:
        if target is None:
            return image, target
        boxes = target["boxes"].as_subclass(Tensor)
        height, width = image.shape[-2:]
        edges = boxes.new_tensor([0, 0, width, height])
        return image, _keep_visible(target, boxes, edges, (height, width), 0.0)

    def __repr__(self) -> str:
        return "Sanitize()"


class ColorJitter:
    """Random brightness, contrast, saturation and hue; uint8 or float in, float32 0..1 out.

    All four are linear in the colour, so they combine to one 3 x 3 matrix and an offset, applied to
    the pixels once: about ten times cheaper than torchvision's, whose hue goes through HSV.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue

    def __call__(self, image: Tensor, target: Target | None) -> Pair:
        pixels = F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
        bright = _uniform(max(0.0, 1 - self.brightness), 1 + self.brightness)
        contrast = _uniform(max(0.0, 1 - self.contrast), 1 + self.contrast)
        saturation = _uniform(max(0.0, 1 - self.saturation), 1 + self.saturation)
        angle = 2 * math.pi * _uniform(-self.hue, self.hue)
        luma = torch.tensor(_LUMA)
        # luma @ matrix stays luma * gain, and greys stay grey: only chroma is scaled and rotated.
        to_grey = luma.expand(3, 3)
        chroma = torch.eye(3) - to_grey
        matrix = to_grey + saturation * chroma @ _turn(angle) @ chroma
        matrix = pixels.new_tensor((matrix * (bright * contrast)).tolist())
        grey = pixels.mean((1, 2)) @ pixels.new_tensor(_LUMA)
        offset = (grey * (bright * (1 - contrast))).expand(3, 1)
        mixed = torch.addmm(offset, matrix, pixels.flatten(1)).clamp_(0, 1)
        return tv_tensors.Image(mixed.view_as(pixels)), target

    def __repr__(self) -> str:
        return f"ColorJitter({self.brightness}, {self.contrast}, {self.saturation}, {self.hue})"


class Finish:
    """The last step of every recipe: normalised float image, cxcywh boxes in 0..1, ``size``.

    With ``normalize=False`` an image that is still uint8 stays uint8.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], normalize: bool = True) -> None:
        self.mean, self.std = list(mean), list(std)
        self.normalize = normalize

    def __call__(self, image: Tensor, target: Target | None) -> Pair:
        height, width = image.shape[-2:]
        pixels = image.as_subclass(Tensor)
        if self.normalize or pixels.is_floating_point():
            pixels = F.to_dtype(pixels, torch.float32, scale=True)
            pixels = F.normalize(pixels, self.mean, self.std)
        if target is not None:
            boxes = target["boxes"].as_subclass(Tensor).to(torch.float32)
            scale = boxes.new_tensor([width, height, width, height])
            boxes = box_convert(boxes, "xyxy", "cxcywh") / scale
            target = {**target, "boxes": boxes, "size": torch.tensor([height, width])}
        return pixels, target

    def __repr__(self) -> str:
        return f"Finish(normalize={self.normalize})"


def _resize(image: Tensor | ImageFile, target: Target | None, size: tuple[int, int]) -> Pair:
    image, target = decode(image, target, size)
    if tuple(image.shape[-2:]) == size:
        return image, target
    image = F.resize(image, list(size), antialias=True)
    if target is not None:
        target = {**target, "boxes": F.resize(target["boxes"], list(size))}
    return image, target


def _smaller(size: tuple[int, int], other: tuple[int, int] | None) -> tuple[int, int]:
    """Return the size with fewer pixels; ``size`` if ``other`` is None."""
    return size if other is None or math.prod(size) <= math.prod(other) else other


def _keep_visible(
    target: Target,
    boxes: Tensor,  # [M, 4] xyxy, before cutting
    edges: Tensor,  # [4] xyxy of what can be seen
    canvas_size: tuple[int, int],
    min_visible: float,
) -> Target:
    """Return the target with ``boxes`` cut to ``edges``, without those that (nearly) vanish."""
    cut = torch.minimum(torch.maximum(boxes, edges[:2].repeat(2)), edges[2:].repeat(2))
    sides, full = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]
    keep = (sides > 0).all(1) & (sides.prod(1) >= min_visible * full.prod(1))
    if not bool(keep.all()):
        cut, target = cut[keep], {**target, "labels": target["labels"][keep]}
    wrapped = tv_tensors.BoundingBoxes(cut, format="XYXY", canvas_size=canvas_size)
    return {**target, "boxes": wrapped}


def _window(extent: int, window: float, out: int) -> tuple[int, int, int, int]:
    """Return a, b, c, d: on this axis pixels [a, b) of the image become [c, d) of the result."""
    start = _uniform(0, 1) * (extent - window)  # negative when the window is larger
    scale = out / window
    if window <= extent:
        first = min(round(start), extent - 1)
        return first, min(extent, max(first + 1, round(start + window))), 0, out
    left = min(out - 1, round(-start * scale))
    return 0, extent, left, min(out, max(left + 1, left + round(extent * scale)))


def _turn(angle: float) -> Tensor:
    """Return the rotation of RGB space by ``angle`` around the grey axis, [3, 3]."""
    cos, third = math.cos(angle), (1 - math.cos(angle)) / 3
    sin = math.sin(angle) / math.sqrt(3)
    a, b, c = cos + third, third - sin, third + sin
    return torch.tensor([[a, b, c], [c, a, b], [b, c, a]])


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _randint(low: int, high: int) -> int:
    """Draw a whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, ()))
