"""COCO json: ``{"images": [...], "annotations": [...], "categories": [...]}`` and a folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_fast.data.dataset import DetectionDataset, Transforms, fit_boxes
from detr_fast.data.errors import DataError
from detr_fast.data.records import Records, box_areas
from detr_fast.garbage import uncollected

_LARGEST = 2**53  # pycocotools keeps ids and sizes in float64
_LARGEST_AREA = 1e10  # pycocotools ignores objects beyond


class CocoDetection(DetectionDataset):
    """A data set in COCO's format.

    * Labels 0..K-1 are the file's categories in the order of their ids. A category without boxes
      or a ``supercategory`` that is another's is a group and no class: Roboflow's files begin with
      one.
    * ``iscrowd`` regions and boxes without area are left out of the targets and counted in
      ``dropped``; crowd regions stay in the ground truth ``coco``.
    * Images without objects are kept, in the order of the file.
    * A box that overhangs its image by up to one pixel is clipped: COCO itself has rounding of that
      kind. More is an error, unless ``boxes`` is "clip".

    Everything except the pixels is checked at construction: a file that is not an image is detected
    when it is decoded.

    Args:
        images: the folder that ``file_name`` is relative to.
        annotations: the json file.
        transforms: called as ``transforms(image, target)``.
        classes: class names in the order of the labels, for instance those of a checkpoint. Names
            that the file lacks have no boxes; an annotation of any other category is an error.
        boxes: what to do with a box further outside its image. "error": raise, as this usually
            means annotations for other pictures or in another format. "clip": cut it, as the
            published code does, and count it in ``clipped``.
        **options: ``cache_images`` and others of :class:`DetectionDataset`.

    Raises:
        DataError: naming the file and the entry.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        transforms: Transforms | None = None,
        classes: Sequence[str] | None = None,
        boxes: str = "error",
        **options: Any,
    ) -> None:
        folder, file = Path(images), Path(annotations)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such image folder")
        with uncollected():
            content = _read_json(file)
            category_ids, class_names = _categories(file, content, classes)
            listed = _images(file, folder, content)
            records, dropped, clipped = _records(
                file, content, listed, category_ids, class_names, classes is not None, boxes
            )
            del content  # before the collector would search it
        super().__init__(
            records,
            class_names,
            category_ids,
            transforms,
            dropped=dropped,
            clipped=clipped,
            **options,
        )


def _read_json(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        with open(file, encoding="utf-8-sig") as stream:  # a byte order mark is allowed
            content = json.load(stream, object_hook=_without_outlines)
    except FileNotFoundError:
        raise DataError(f"{file}: no such annotation file") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not json, or not text
        raise DataError(f"{file}: cannot read the annotations ({error})") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{file}: not a COCO detection file, it has no list '{key}'")
        for position, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                raise DataError(f"{file}: {key}[{position}] is not an object")
    return content


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an object of the file without what nobody asks for and takes most of the memory."""
    entry.pop("segmentation", None)
    return entry


def _require(file: Path, entry: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in entry:
        raise DataError(f"{file}: {place} has no '{key}'")
    return entry[key]


def _require_int(file: Path, entry: Mapping[str, Any], key: str, place: str) -> int:
    value = _require(file, entry, key, place)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise DataError(f"{file}: {place} has '{key}' {value!r:.100}, expected a whole number")
    if abs(value) > _LARGEST:
        raise DataError(f"{file}: {place} has '{key}' {value!s:.30}, expected at most 2**53")
    return int(value)


def _to_float(number: float) -> float:
    """Convert to float; integers in json that a float cannot hold count as infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _categories(
    file: Path, content: dict[str, list[dict[str, Any]]], classes: Sequence[str] | None
) -> tuple[list[int], list[str]]:
    """Return the category id and the name of each label."""
    by_id: dict[int, str] = {}
    ids = (entry.get("category_id") for entry in content["annotations"])
    used = {_to_float(i) for i in ids if isinstance(i, (int, float))}
    parents = {str(entry.get("supercategory", "")) for entry in content["categories"]}
    for position, entry in enumerate(content["categories"]):
        place = f"categories[{position}]"
        category = _require_int(file, entry, "id", place)
        name = str(_require(file, entry, "name", place))
        is_root = name in parents and entry.get("supercategory") in (None, "", "none")
        if is_root and category not in used and name not in (classes or ()):
            continue  # a group of others, not a class of objects: Roboflow's files begin with one
        if category in by_id:
            raise DataError(f"{file}: {place} repeats the category id {category}")
        if name in by_id.values():
            raise DataError(f"{file}: {place} repeats the category name '{name}'")
        by_id[category] = name
    if classes is None:
        ids = sorted(by_id)
        return ids, [by_id[i] for i in ids]
    by_name = {name: category for category, name in by_id.items()}
    unused = max([0, *by_id]) + 1  # ids for the names that this file does not have
    ids = []
    for name in classes:
        if name in by_name:
            ids.append(by_name[name])
        else:
            ids.append(unused)
            unused += 1
    return ids, list(classes)


@dataclass
class _Images:
    """The images that a file lists, in its order."""

    positions: dict[int, int]  # by image id
    paths: list[str]
    sizes: list[tuple[int, int]]  # (width, height)


def _images(file: Path, folder: Path, content: dict[str, list[dict[str, Any]]]) -> _Images:
    images = _Images({}, [], [])
    listings: dict[str, set[str]] = {}  # one directory read instead of a stat for each image
    for position, entry in enumerate(content["images"]):
        place = f"images[{position}]"
        image_id = _require_int(file, entry, "id", place)
        name = str(_require(file, entry, "file_name", place))
        width = _require_int(file, entry, "width", place)
        height = _require_int(file, entry, "height", place)
        if width < 1 or height < 1:
            raise DataError(f"{file}: {place} ({name}) has the size {width} x {height}")
        if image_id in images.positions:
            raise DataError(f"{file}: {place} repeats the image id {image_id}")
        path = str(folder / name)
        parent, base = os.path.split(path)
        if parent not in listings:
            inside = parent or os.curdir
            listings[parent] = set(os.listdir(inside)) if os.path.isdir(inside) else set()
        if base not in listings[parent]:
            raise DataError(f"{path}: no such image file, but {place} of {file} names it")
        images.positions[image_id] = position
        images.paths.append(path)
        images.sizes.append((width, height))
    return images


def _records(
    file: Path,
    content: dict[str, list[dict[str, Any]]],
    images: _Images,
    category_ids: list[int],
    class_names: list[str],
    classes_given: bool,
    outside: str,
) -> tuple[Records, dict[str, int], int]:
    """Check all annotations, and return them by image.

    Also return the numbers of dropped annotations, and how many boxes were clipped.
    """
    annotations = content["annotations"]
    count = len(annotations)
    label_of = {category: label for label, category in enumerate(category_ids)}
    names = {int(entry["id"]): entry["name"] for entry in content["categories"]}
    sizes = np.array(images.sizes, dtype=np.int64).reshape(-1, 2)
    boxes, areas = np.zeros((count, 4)), np.zeros(count)
    image_of, labels = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    crowd = np.zeros(count, dtype=bool)
    for position, entry in enumerate(annotations):
        place = f"annotation {entry['id']}" if "id" in entry else f"annotations[{position}]"
        image_id = _require_int(file, entry, "image_id", place)
        if image_id not in images.positions:
            raise DataError(f"{file}: {place} belongs to the unknown image id {image_id}")
        category = _require_int(file, entry, "category_id", place)
        if category not in label_of:
            known = f"'{names[category]}'" if category in names else f"id {category}"
            among = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
            why = f"the classes asked for are {among}" if classes_given else "not in 'categories'"
            raise DataError(f"{file}: {place} has the unknown category {known} ({why})")
        box = _require(file, entry, "bbox", place)
        if not _is_box(box):
            raise DataError(f"{file}: {place} has bbox {box!r:.100}, expected 4 numbers")
        boxes[position] = [_to_float(value) for value in box]
        labels[position] = label_of[category]
        image_of[position] = images.positions[image_id]
        iscrowd = entry.get("iscrowd", 0)
        if iscrowd not in (0, 1):  # "0" would count as true
            raise DataError(f"{file}: {place} has 'iscrowd' {iscrowd!r}, expected 0 or 1")
        crowd[position] = bool(iscrowd)
        area = entry.get("area")
        areas[position] = _to_float(area) if isinstance(area, (int, float)) else math.nan
        if areas[position] > _LARGEST_AREA:
            raise DataError(
                f"{file}: {place} has 'area' {area!s:.30}, expected at most {_LARGEST_AREA:.0e}"
            )
    written = boxes.copy()
    boxes[:, 2:] += boxes[:, :2]

    def name(k: int) -> str:
        entry = annotations[k]
        box = ", ".join(f"{v:g}" for v in written[k])
        image = os.path.basename(images.paths[image_of[k]])
        return f"annotation {entry.get('id', k)}: box [{box}] (x, y, w, h) of {image}"

    boxes, clipped = fit_boxes(boxes, sizes[image_of], outside, file, name)
    areas = np.where(areas >= 0, areas, math.nan)  # some write -1 if they do not know it
    zero = (box_areas(boxes) <= 0) & ~crowd
    records = Records(
        np.array(list(images.positions), dtype=np.int64),
        images.paths,
        sizes,
        *(column[~zero] for column in (image_of, boxes, labels, areas, crowd)),
    )
    return records, {"crowd": int(crowd.sum()), "zero_area": int(zero.sum())}, clipped


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    )
