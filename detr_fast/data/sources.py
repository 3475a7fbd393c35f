"""Data sets as a command line names them: ``shapes``, ``voc:PATH``, ``coco:...``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detr_fast.data.coco import CocoDetection
from detr_fast.data.dataset import DetectionDataset, Transforms
from detr_fast.data.errors import DataError
from detr_fast.data.shapes import CLASS_NAMES, Shapes
from detr_fast.data.voc import VocDetection

SPLITS = ("train", "val", "test")
FORMS = "shapes | voc:PATH | coco:IMAGES:JSON | coco:ROOT"

_SHAPES_COUNT = {"train": 3200, "val": 500, "test": 500}


def open_dataset(
    spec: str,
    split: str,
    transforms: Transforms | None = None,
    classes: Sequence[str] | None = None,
    *,
    boxes: str = "error",
    voc_origin: int = 0,
    **options: Any,
) -> DetectionDataset:
    """Open the data that ``spec`` names.

    ========================  ==================================================================
    ``shapes``                generated; "train" has new images every epoch, "val" and "test" are
                              fixed, and no two splits share an image
    ``voc:PATH``              a Pascal VOC folder; ``split`` is a file of ImageSets/Main
    ``coco:IMAGES:JSON``      a folder and an annotation file; ``split`` is not used
    ``coco:ROOT``             ROOT/{split}2017 and ROOT/annotations/instances_{split}2017.json
    ========================  ==================================================================

    Args:
        spec: see above.
        split: "train", "val" or "test"; for a VOC folder, the name of any of its splits.
        transforms: called as ``transforms(image, target)``.
        classes: class names in the order of the labels, for instance those of a checkpoint.
        boxes: what to do with boxes outside their images: "error" or "clip".
        voc_origin: ``origin`` of :class:`VocDetection`; no effect on other data.
        **options: for the data set's constructor: ``cache_images``, ``cache_limit`` and
            ``scaled_decoding`` (no effect on shapes); for shapes ``num_images``,
            ``image_size``, ``seed``, ``fresh``.

    Raises:
        DataError: an unknown form, a wrong path, or bad data; one line.
    """
    kind, _, rest = spec.partition(":")
    if kind == "shapes" and not rest:
        return _open_shapes(split, transforms, classes, **options)
    if kind == "voc" and rest:
        return VocDetection(rest, split, transforms, classes, boxes, voc_origin, **options)
    if kind == "coco" and rest:
        images, annotations = _coco_paths(rest, split)
        return CocoDetection(images, annotations, transforms, classes, boxes, **options)
    raise DataError(f"the data '{spec}' is not recognised, expected {FORMS}")


def _open_shapes(
    split: str,
    transforms: Transforms | None,
    classes: Sequence[str] | None,
    *,
    seed: int = 0,
    cache_images: bool = False,  # there is nothing to decode
    cache_limit: int | None = None,
    scaled_decoding: bool = False,
    **options: Any,
) -> Shapes:
    if split not in SPLITS:
        raise DataError(f"shapes: unknown split '{split}', expected {', '.join(SPLITS)}")
    if classes is not None and tuple(classes) != CLASS_NAMES:
        raise DataError(
            f"shapes: the classes are {', '.join(CLASS_NAMES)}, but the classes asked for are "
            f"{', '.join(classes)}"
        )
    # Seeds 3s, 3s + 1, 3s + 2: no two splits share a seed, whatever seeds are chosen.
    defaults = {"num_images": _SHAPES_COUNT[split], "fresh": split == "train"}
    return Shapes(
        seed=len(SPLITS) * seed + SPLITS.index(split), transforms=transforms, **defaults | options
    )


def _coco_paths(rest: str, split: str) -> tuple[Path, Path]:
    root = Path(rest)
    if root.is_dir():
        return root / f"{split}2017", root / "annotations" / f"instances_{split}2017.json"
    images, colon, annotations = rest.rpartition(":")
    if not colon:
        raise DataError(f"{root}: no such folder")
    return Path(images), Path(annotations)
