"""What all data sources share: records of images and boxes, decoding, ground truth for COCOeval."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detr_fast.data.augment import Target
from detr_fast.data.cache import ImageCache
from detr_fast.data.errors import DataError
from detr_fast.data.images import ImageFile, read_image
from detr_fast.data.records import Record, Records, box_areas
from detr_fast.data.transforms import Recipe
from detr_fast.wording import counted

Transforms = Callable[[Tensor, Target], tuple[Tensor, Target]]

MAX_OVERHANG = 1.0  # boxes up to this many pixels outside are clipped: rounding, not an error
BOXES = ("error", "clip")  # what to do with boxes that reach further
_SHOWN = 5  # how many of them an error message lists


class DetectionDataset(Dataset):
    """Images with boxes. ``dataset[i]`` is ``(image, target)``, passed through ``transforms``.

    Before transforms, ``image`` is a ``tv_tensors.Image`` uint8 ``[3, H, W]`` RGB and ``target``::

        {"boxes":     tv_tensors.BoundingBoxes float32 [M, 4], xyxy in pixels of this image
         "labels":    int64 [M], 0..K-1
         "image_id":  int64 scalar, the id used in ``coco``
         "orig_size": int64 [2], (height, width) of the original image}

    M may be 0: images without objects are kept.

    Args:
        records: one entry per image.
        class_names: the K names; label k is ``class_names[k]``.
        category_ids: the K ids used in ``coco`` and in result files; label k is
            ``category_ids[k]``.
        transforms: called as ``transforms(image, target)``, see ``detr_fast.data.transforms``.
        dropped: how many ``"crowd"`` and ``"zero_area"`` annotations are not in the targets.
        clipped: how many boxes that reached outside their images were cut to them.
        cache_images: keep each decoded image in memory (uint8, 3*H*W bytes), no larger than
            ``transforms`` need it, if they are a :class:`Recipe`. Workers started by fork fill and
            share one cache; with spawn each worker has its own.
        cache_limit: bytes that the cache may take; images that do not fit are decoded each time.
            None: no limit.
        scaled_decoding: decode JPEG files at 1/2, 1/4 or 1/8 of their size where ``transforms``
            shrink them further anyway. Faster, and a little different from the whole image resized
            in one step. Takes effect only if ``transforms`` are a :class:`Recipe`.

    Raises:
        ValueError: a record's label is no class, or as :meth:`Records.pack`.
        DataError: from ``dataset[i]``, when the image cannot be read or its size is not the one
            that its annotations were made for. One line, also from a DataLoader worker.
    """

    def __init__(
        self,
        records: Iterable[Record],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        transforms: Transforms | None = None,
        *,
        dropped: dict[str, int] | None = None,
        clipped: int = 0,
        cache_images: bool = False,
        cache_limit: int | None = None,
        scaled_decoding: bool = False,
    ) -> None:
        if len(class_names) != len(category_ids):
            raise ValueError(f"{len(class_names)} class names, {len(category_ids)} category ids")
        self.records = records if isinstance(records, Records) else Records.pack(records)
        self.records.check_labels(len(class_names))
        self.class_names = list(class_names)
        self.category_ids = [int(c) for c in category_ids]
        self.transforms = transforms
        self.dropped = {"crowd": 0, "zero_area": 0} | (dropped or {})
        self.clipped = clipped
        self._coco: Any = None
        self.scaled_decoding = scaled_decoding
        self.cache: ImageCache | None = None
        if cache_images:
            useful = (
                transforms.useful_size if isinstance(transforms, Recipe) else lambda *size: size
            )
            sizes = [useful(height, width) for width, height in self.records.sizes.tolist()]
            self.cache = ImageCache(sizes, cache_limit)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.read(index, lazily=self.scaled_decoding)
        if self.transforms is not None:
            return self.transforms(image, target)
        return image, target

    def read(self, index: int, lazily: bool = False) -> tuple[Tensor | ImageFile, Target]:
        """Return the image and its target before ``transforms``.

        Args:
            lazily: return an image that is neither cached nor generated as its :class:`ImageFile`,
                not decoded yet; only if ``transforms`` are a :class:`Recipe`, which accepts it.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} images")
        index %= len(self)
        image, record = self._load(index)
        if isinstance(image, ImageFile) and not (lazily and isinstance(self.transforms, Recipe)):
            image, _ = image.read()
        height, width = image.shape[-2:]
        boxes = torch.from_numpy(record.boxes.astype(np.float32))
        if (height, width) != (record.height, record.width):  # shrunk by the cache
            scale = (width / record.width, height / record.height)
            boxes = boxes * boxes.new_tensor(scale + scale)
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(record.labels.copy()),
            "image_id": torch.tensor(record.image_id),
            "orig_size": torch.tensor([record.height, record.width]),
        }
        return tv_tensors.Image(image) if isinstance(image, Tensor) else image, target

    def record(self, index: int) -> Record:
        """Return the annotations of one image, without decoding it."""
        return self.records[index]

    def _all_records(self) -> Records:
        """Return what ``record`` does for all images."""
        if type(self).record is DetectionDataset.record:
            return self.records
        return Records.pack(map(self.record, range(len(self))))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that begins; only generated data uses it."""

    @property
    def objects_per_image(self) -> np.ndarray:
        """How many objects are in each image, int64 [images]."""
        return self._object_counts[0]

    @property
    def objects_per_class(self) -> np.ndarray:
        """How many objects of each class there are, int64 [K]."""
        return self._object_counts[1]

    @functools.cached_property
    def _object_counts(self) -> tuple[np.ndarray, np.ndarray]:
        records = self._all_records()
        return records.object_counts, records.count_labels(len(self.class_names))

    def boxes_per_class(self) -> dict[str, int]:
        """Return class name -> number of boxes."""
        return dict(zip(self.class_names, self.objects_per_class.tolist(), strict=True))

    def describe(self) -> str:
        """Describe in one line the images, boxes, classes, and what was left out."""
        counts = self.objects_per_image
        names = self.class_names
        shown = ", ".join(names if len(names) <= 10 else [*names[:3], "...", names[-1]])
        zero, crowd = self.dropped["zero_area"], self.dropped["crowd"]
        empty = int((counts == 0).sum())
        return ", ".join(
            [
                counted(len(self), "image"),
                counted(int(counts.sum()), "box", "boxes"),
                f"{counted(len(names), 'class', 'classes')} ({shown})",
                *([f"{counted(self.clipped, 'box', 'boxes')} clipped"] if self.clipped else []),
                f"{counted(zero, 'zero-area box', 'zero-area boxes')} dropped",
                f"{counted(crowd, 'crowd region')} dropped",
                f"{counted(empty, 'image')} without objects",
            ]
        )

    @property
    def coco(self) -> Any:
        """The ground truth as ``pycocotools.coco.COCO``, for COCOeval; built at first use.

        It holds every image, the boxes of the targets in original pixels, and the crowd regions
        (``iscrowd`` 1), which targets leave out but the evaluation needs.
        """
        if self._coco is None:
            self._coco = _to_coco(self)
        return self._coco

    def _load(self, index: int) -> tuple[Tensor | ImageFile, Record]:
        """Return the pixels, uint8 [3, H, W], or the file they are in, and the record.

        A source that generates images overrides this.
        """
        record = self.records[index]
        size = (record.height, record.width)
        if self.cache is None or not self.cache.has_room(index):
            return ImageFile(record.path, size), record
        pixels = self.cache.get(index)
        if pixels is None:
            pixels = read_image(record.path, size)
            cached_size = self.cache.size(index)
            if pixels.shape[-2:] != cached_size:
                pixels = F.resize(pixels, list(cached_size), antialias=True)
            self.cache.put(index, pixels)
        return pixels, record


def fit_boxes(
    boxes: np.ndarray,  # float64 [T, 4] xyxy
    sizes: np.ndarray,  # [T, 2] (width, height) of each box's image
    outside: str,
    where: str | Path,
    name: Callable[[int], str],
) -> tuple[np.ndarray, int]:
    """Return the boxes cut to their images, and how many overhung by more than ``MAX_OVERHANG``.

    Args:
        outside: what to do with the latter: "error" or "clip".
        where: the file or folder that the boxes come from, for error messages.
        name: returns what error messages call box k.

    Raises:
        ValueError: ``outside`` is neither of these.
        DataError: boxes are not finite, have a negative size or, with "error", are outside; the
            message counts them and says what is wrong with the first ones.
    """
    if outside not in BOXES:
        raise ValueError(f"boxes is {outside!r}, expected one of {', '.join(BOXES)}")
    finite = np.isfinite(boxes).all(axis=1)
    negative = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    beyond = (boxes[:, :2] < -MAX_OVERHANG).any(axis=1)
    beyond |= (boxes[:, 2:] > sizes + MAX_OVERHANG).any(axis=1)
    beyond &= finite & ~negative
    bad = np.flatnonzero(~finite | negative | (beyond & (outside == "error")))
    if len(bad):
        shown = []
        for k in bad[:_SHOWN].tolist():
            fault = f"reaches outside its {sizes[k, 0]:g} x {sizes[k, 1]:g} image"
            fault = "has a negative size" if negative[k] else fault
            shown.append(f"{name(k)} {fault if finite[k] else 'is not finite'}")
        many = "" if len(bad) == 1 else f"{len(bad):,} of {len(boxes):,} boxes are wrong: "
        more = "; ..." if len(bad) > len(shown) else ""
        way = "; --boxes clip cuts boxes to their images" if beyond[bad].any() else ""
        raise DataError(f"{where}: {many}{'; '.join(shown)}{more}{way}")
    edges = np.concatenate([sizes, sizes], axis=1).astype(np.float64)
    return np.clip(boxes, 0.0, edges), int(beyond.sum())


def _to_coco(dataset: DetectionDataset) -> Any:
    from pycocotools.coco import COCO

    images, annotations = [], []
    for record in dataset._all_records():
        images.append(
            {
                "id": record.image_id,
                "width": record.width,
                "height": record.height,
                "file_name": "" if record.path is None else record.path.name,
            }
        )
        boxes = np.concatenate([record.boxes, record.crowd_boxes])
        labels = np.concatenate([record.labels, record.crowd_labels])
        areas = np.concatenate([record.areas, box_areas(record.crowd_boxes)])
        for k, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # COCOeval reads a match with id 0 as no match
                    "image_id": record.image_id,
                    "category_id": dataset.category_ids[int(labels[k])],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(areas[k]),
                    "iscrowd": int(k >= len(record.boxes)),
                }
            )
    categories = zip(dataset.category_ids, dataset.class_names, strict=True)
    coco = COCO()
    coco.dataset = {
        "info": {},  # COCO.loadRes copies it
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in categories],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        coco.createIndex()
    return coco
