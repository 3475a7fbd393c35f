"""JPEG files decoded by the GPU: workers only read them, the rest is done on the model's device."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from detr_fast.data.augment import Target
from detr_fast.data.collate import Batch, collate
from detr_fast.data.dataset import DetectionDataset
from detr_fast.data.images import ImageFile, read_image
from detr_fast.data.transforms import Recipe


class Encoded(NamedTuple):
    """An image on its way to a device that decodes it."""

    data: Tensor  # uint8: [n], a JPEG file; or [3, H, W], the pixels of any other image
    path: Path | None
    target: Target  # as before the transforms
    seed: int  # of its random transforms


def read_encoded(dataset: DetectionDataset, index: int, seed: int) -> Encoded:
    """Return what :class:`DeviceDecoder` needs of an image.

    Images that are generated or kept in memory come as pixels; so do files that decoders other
    than Pillow may decode differently: PNGs, pictures that must be turned, CMYK.

    Raises:
        DataError: as ``dataset[index]``.
    """
    image, target = dataset.read(index, lazily=True)
    if not isinstance(image, ImageFile):
        return Encoded(image.as_subclass(Tensor), None, target, seed)
    data = image.read_jpeg()
    return Encoded(image.read()[0] if data is None else data, Path(image.path), target, seed)


def collate_encoded(batch: Sequence[Encoded]) -> list[Encoded]:
    """Return the batch; from a worker with all data in one memory, since it sends each on its own.

    For ``DataLoader(collate_fn=collate_encoded)``.
    """
    if get_worker_info() is None:
        return list(batch)
    sizes = [item.data.numel() for item in batch]
    parts = torch.cat([item.data.flatten() for item in batch]).split(sizes)
    return [
        item._replace(data=part.view(item.data.shape))
        for item, part in zip(batch, parts, strict=True)
    ]


class DeviceDecoder:
    """Makes a batch of encoded images: decodes, transforms and pads them on a device.

    Random transforms depend on each image's ``seed``, not on the state of torch's generator. Pixels
    differ by rounding from those that Pillow decodes. TorchCodec (0.16 or newer) decodes where it
    is installed and can, else torchvision, whose decoders are deprecated.

    Args:
        recipe: the transforms.
        device: where to do this. On a GPU nvJPEG decodes the whole batch at once.
        pad_to_multiple: as for ``collate``.

    Attributes:
        library: the name of the one that decodes.

    Raises:
        ValueError: neither can decode JPEG files on ``device``.
    """

    def __init__(self, recipe: Recipe, device: torch.device, pad_to_multiple: int = 1) -> None:
        self.recipe = recipe
        self.device = device
        self.pad_to_multiple = pad_to_multiple
        self.library, self._decode_jpeg = _find_decoder(device)

    def __call__(self, batch: Sequence[Encoded]) -> Batch:
        """Return the batch as ``collate`` makes it, targets packed, images on the device.

        Raises:
            DataError: a file that cannot be decoded.
        """
        pixels = self._decode(batch)
        samples = []
        with torch.random.fork_rng(devices=[]):
            for image, item in zip(pixels, batch, strict=True):
                torch.default_generator.manual_seed(item.seed)
                samples.append(self.recipe(image, item.target))
        return collate(samples, self.pad_to_multiple, pack=True)

    def _decode(self, batch: Sequence[Encoded]) -> list[Tensor]:
        files = [item for item in batch if item.data.ndim == 1]
        if not files:
            return [item.data.to(self.device, non_blocking=True) for item in batch]
        if self.device.type == "cuda":
            # It is decoded on a separate stream, which does not wait for this one: the memory
            # that it writes may still be read here, as the images of the previous batch.
            torch.cuda.current_stream(self.device).synchronize()
        try:
            decoded = self._decode_jpeg([item.data for item in files], device=self.device)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:  # it names no file: Pillow decodes each, or names the bad one
            decoded = [read_image(item.path).to(self.device) for item in files]
        rest = iter(decoded)
        return [
            next(rest) if item.data.ndim == 1 else item.data.to(self.device, non_blocking=True)
            for item in batch
        ]


def _find_decoder(device: torch.device) -> tuple[str, Callable[..., list[Tensor]]]:
    """Return the name of a library, and its function from a list of JPEG files to RGB images.

    Raises:
        ValueError: there is none that works on the device.
    """
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    image = torch.frombuffer(file.getbuffer(), dtype=torch.uint8)
    faults = []
    for library, find in {"torchcodec": _torchcodec, "torchvision": _torchvision}.items():
        try:  # it may be missing, too old, for another torch, or built without the device
            decode = find()
            decode([image], device=device)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            faults.append(f"{library}: {[*str(error).splitlines(), type(error).__name__][0]}")
        else:
            return library, decode
    raise ValueError(f"no library decodes JPEG files on {device} ({'; '.join(faults)})")


def _torchcodec() -> Callable[..., list[Tensor]]:
    from torchcodec.decoders import decode_jpeg

    return functools.partial(decode_jpeg, mode="RGB")


def _torchvision() -> Callable[..., list[Tensor]]:
    from torchvision.io import ImageReadMode, decode_jpeg

    return functools.partial(decode_jpeg, mode=ImageReadMode.RGB)
