"""Reading an image file into a uint8 RGB tensor, whatever kind of file it is.

Rules, the same everywhere:

* Grey, palette and CMYK images become RGB; an alpha channel is dropped, not blended; 16-bit grey
  is scaled to 8 bits; of an animation only the first frame is used.
* EXIF orientation is applied, because whoever drew the boxes saw the picture that way. If the
  annotations state a size that fits only the picture as stored, it stays as stored.
* A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which saves most of the work: the inverse
  cosine transform then computes fewer pixels of each block of 8 x 8.

Pixels lie in memory as decoders write them, the three colours of a pixel side by side: resizing
such tensors is two to four times faster than resizing separate colour planes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from detr_fast.data.errors import DataError

_EXIF_ORIENTATION = 0x0112
_DARK = (
    "this 16-bit picture uses less than a sixteenth of its range, and so is read as nearly black; "
    "if its pixels have 12 bits, say, convert such files to 8 bits"
)
_TO_UPRIGHT = {  # the operation that undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = frozenset({5, 6, 7, 8})  # orientations that exchange width and height


class ImageFile:
    """A picture that is decoded only when its pixels are needed, and at the scale needed.

    Args:
        path: the image file, in any format Pillow reads.
        size: ``(height, width)`` of the whole picture, as for :func:`read_image`.
    """

    def __init__(self, path: str | Path, size: tuple[int, int]) -> None:
        self.path = path
        self.shape = (3, *size)

    def read(self, at_least: tuple[int, int] | None = None) -> tuple[Tensor, int]:
        """Decode the file; see :func:`read_scaled`."""
        return read_scaled(self.path, self.shape[1:], at_least)

    def read_jpeg(self) -> Tensor | None:
        """Return the file's bytes, uint8 [n], if it is an upright grey or RGB JPEG, else None.

        Of such a file any JPEG decoder gives the same picture as :meth:`read`.

        Raises:
            DataError: as :func:`read_image`, for faults that the header shows.
        """
        with _errors_named(self.path), Image.open(self.path) as opened:
            turn = _check_size(opened, self.shape[1:])
            if turn is not None or opened.format != "JPEG" or opened.mode not in ("RGB", "L"):
                return None
            return torch.from_numpy(np.fromfile(self.path, dtype=np.uint8))


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Decode one image file.

    Args:
        path: the image file, in any format Pillow reads.
        size: ``(height, width)`` stated by the annotations, or None if not stated. It decides
            whether EXIF orientation is applied (see above), and must fit the picture.

    Returns:
        uint8 ``[3, H, W]``, RGB, a view of ``[H, W, 3]``.

    Raises:
        DataError: the file is missing, is not an image, is cut off, or is not of ``size``.
    """
    return read_scaled(path, size, None)[0]


def to_pixels(picture: Image.Image) -> Tensor:
    """Return what :func:`read_image` would for the file of a Pillow image.

    Raises:
        DataError: the picture cannot be decoded, or its pixels have no defined white level.
    """
    with _errors_named("the picture"):
        turn = _TO_UPRIGHT.get(_orientation(picture))
        return _tensor(picture, "the picture", turn)


def read_scaled(
    path: str | Path, size: tuple[int, int] | None, at_least: tuple[int, int] | None
) -> tuple[Tensor, int]:
    """Decode one image file, a JPEG at the smallest scale that leaves ``at_least`` pixels.

    Args:
        path, size: as for :func:`read_image`.
        at_least: smallest ``(height, width)`` of the result, unless the whole picture is smaller.
            With None, and for any file that is not a JPEG, the picture is decoded at full size.

    Returns:
        The pixels as from :func:`read_image`, and the divisor 1, 2, 4 or 8: pixel (y, x) shows the
        pixels of the whole picture from (divisor * y, divisor * x) on. H and W are rounded up, so
        the last row and column may reach beyond the picture.

    Raises:
        DataError: as :func:`read_image`.
    """
    with _errors_named(path), Image.open(path) as opened:
        turn = _check_size(opened, size)
        divisor = 1
        if at_least is not None and opened.format in ("JPEG", "MPO"):
            stored = (opened.height, opened.width)
            if turn is not None and _orientation(opened) in _SWAPPING:
                at_least = at_least[::-1]
            divisor = _divisor(stored, at_least, whole=turn is not None)
            drafted = opened.draft(None, (stored[1] // divisor, stored[0] // divisor))
            # The scale that Pillow will use, which may not be the one requested.
            divisor = 1 if drafted is None else round(stored[1] / drafted[1][2])
        return _tensor(opened, path, turn), divisor


def _tensor(image: Image.Image, path: str | Path, turn: Image.Transpose | None) -> Tensor:
    """Return a picture's RGB pixels, turned; ``path`` is for messages."""
    image = _to_rgb(image, path)
    if turn is not None:
        image = image.transpose(turn)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _check_size(opened: Image.Image, size: tuple[int, int] | None) -> Image.Transpose | None:
    """Return how to turn the picture for annotations that state ``size``; None: not at all."""
    oriented = _oriented_size(opened)
    if size is not None and size not in (oriented, (opened.height, opened.width)):
        raise DataError(
            f"the image is {_wxh(oriented)}, but its annotations were made for {_wxh(size)}"
        )
    return _TO_UPRIGHT.get(_orientation(opened)) if size in (None, oriented) else None


@contextlib.contextmanager
def _errors_named(path: str | Path) -> Iterator[None]:
    """Turn any exception about a file into a :class:`DataError` that names the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        raise DataError(f"{path}: cannot read the image ({_reason(error, path)})") from None


def _divisor(stored: tuple[int, int], at_least: tuple[int, int], whole: bool) -> int:
    """Return the largest of 8, 4, 2, 1 by which ``stored`` may be divided.

    ``whole``: only without remainder. A picture that is turned afterwards needs this: the part of
    its last row beyond the picture would come first, and shift everything.
    """
    for divisor in (8, 4, 2):
        sides = list(zip(stored, at_least, strict=True))
        if all(side // divisor >= least for side, least in sides) and not (
            whole and any(side % divisor for side in stored)
        ):
            return divisor
    return 1


def image_size(path: str | Path, stated: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return ``(height, width)`` as :func:`read_image` would, from the file's header alone.

    ``stated`` is the size in the annotations, if any: where it fits the picture as stored but not
    as its EXIF orientation shows it, the stored size is returned.

    Raises:
        DataError: the file is missing or is not an image.
    """
    with _errors_named(path), Image.open(path) as opened:
        stored = (opened.height, opened.width)
        # The usual case first: asking Pillow for a PNG's EXIF decodes the whole picture.
        return stored if stated == stored else _oriented_size(opened)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to refuse a picture that decodes
        return 1


def _oriented_size(image: Image.Image) -> tuple[int, int]:
    if _orientation(image) in _SWAPPING:
        return image.width, image.height
    return image.height, image.width


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise DataError("floating point pixels have no defined white level")
    if image.mode.startswith("I"):  # 16-bit grey: convert("RGB") would clip at 255
        grey = np.asarray(image).astype(np.int64)
        if image.mode == "I" and (grey.min() < 0 or grey.max() > 0xFFFF):
            raise DataError("32-bit pixels have no defined white level")
        if image.mode != "I" or grey.max() > 0xFF:  # mode I may hold 8 bits as well as 16
            if grey.max() < 0x1000:
                warnings.warn(f"{path}: {_DARK}", stacklevel=2)
            grey >>= 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA", "LA") and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception, path: str | Path) -> str:
    """Return Pillow's message, without the path that our message already starts with."""
    if isinstance(error, UnidentifiedImageError):
        empty = Path(path).is_file() and Path(path).stat().st_size == 0
        return "the file is empty" if empty else "not in a format that Pillow reads"
    text = str(error).replace(repr(str(path)), "the file").replace(str(path), "the file")
    return text or type(error).__name__


def _wxh(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
