"""Pascal VOC folders: ``ImageSets/Main/*.txt``, ``Annotations/*.xml``, ``JPEGImages/*``."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_fast.data.dataset import DetectionDataset, Transforms, fit_boxes
from detr_fast.data.errors import DataError
from detr_fast.data.images import image_size
from detr_fast.data.records import Records

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # the first has priority


class VocDetection(DetectionDataset):
    """A data set in the layout of Pascal VOC, with XML files as labelImg writes them.

    * Coordinates are used as written: ``xmin`` and ``xmax`` are the left and right edge in pixels.
      The original VOC files count from 1 and include the last pixel. For these set ``origin`` to 1:
      a pixel is then subtracted from ``xmin`` and ``ymin``.
    * Class names are the sorted names found in the annotations of *all* splits, so that every
      split has the same labels. ``category_ids`` are 1..K.
    * The size is read from the picture itself. A ``<size>`` that is missing or 0 is ignored; one
      that differs is an error, because the boxes were then made for another picture.
    * Objects marked ``difficult`` are kept. Boxes without area are dropped and counted, boxes that
      overhang by up to one pixel are clipped, others outside the picture are errors, unless
      ``boxes`` is "clip".
    * ``image_id`` is the position in the split, from 0.

    Args:
        root: the folder that holds ImageSets, Annotations and JPEGImages.
        split: the name of a file in ImageSets/Main, without ".txt".
        transforms: called as ``transforms(image, target)``.
        classes: class names in the order of the labels, for instance those of a checkpoint; an
            object of any other class is an error.
        boxes: what to do with a box further outside its image. "error": raise, as this usually
            means annotations for other pictures or in another format. "clip": cut it, as the
            published code does, and count it in ``clipped``.
        origin: number of the first pixel: 0, or 1 where boxes also include their last pixel.
        **options: ``cache_images`` and others of :class:`DetectionDataset`.

    Raises:
        DataError: naming the file and the entry.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transforms: Transforms | None = None,
        classes: Sequence[str] | None = None,
        boxes: str = "error",
        origin: int = 0,
        **options: Any,
    ) -> None:
        if origin not in (0, 1):
            raise ValueError(f"origin is {origin!r}, expected 0 or 1")
        root = Path(root)
        names, others = _read_splits(root, split)
        parsed = [_parse(root / "Annotations" / f"{name}.xml") for name in names]
        if classes is None:
            own_names = {obj.name for annotation in parsed for obj in annotation.objects}
            class_names = sorted(own_names | _class_names(root, others))
        else:
            class_names = list(classes)
        files = _image_files(root / "JPEGImages", names)
        for name in names:
            if name not in files:
                raise DataError(
                    f"{root / 'JPEGImages' / name}.jpg: no such image file, but the split "
                    f"'{split}' lists it"
                )
        paths = [files[name] for name in names]
        records, zero_area, clipped = _records(root, paths, parsed, class_names, boxes, origin)
        super().__init__(
            records,
            class_names,
            range(1, len(class_names) + 1),
            transforms,
            dropped={"zero_area": zero_area},
            clipped=clipped,
            **options,
        )


@dataclass(slots=True)
class _Object:
    name: str
    box: list[float]  # xyxy as written


@dataclass(slots=True)
class _Annotation:
    file: Path
    size: tuple[int, int] | None  # (height, width) as stated, None when missing or 0
    objects: list[_Object]


def _read_splits(root: Path, split: str) -> tuple[list[str], list[str]]:
    """Return the image names of ``split``, and those that only other splits list."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    folder = root / "ImageSets" / "Main"
    files = {file.stem: file for file in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    if not files:
        raise DataError(f"{root}: not a Pascal VOC folder, it has no ImageSets/Main/*.txt")
    if split not in files:
        raise DataError(f"{folder / split}.txt: no such split, expected {', '.join(files)}")
    lists = {stem: _read_list(file, root / "Annotations") for stem, file in files.items()}
    names = lists[split]
    if not names:
        raise DataError(f"{files[split]}: the split lists no images")
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise DataError(f"{files[split]}: '{twice}' is listed twice")
    everywhere = dict.fromkeys(name for listed in lists.values() for name in listed)
    own = set(names)
    return names, [name for name in everywhere if name not in own]


def _read_list(file: Path, annotations: Path) -> list[str]:
    """Return the image names in one file of ImageSets/Main, in their order."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot read the split ({error})") from None
    names = []
    for line in filter(None, map(str.strip, lines)):
        name, *flag = line.rsplit(maxsplit=1)
        # VOC's per-class lists have lines "2008_000008 -1"; but a name may also have spaces.
        if flag not in (["-1"], ["0"], ["1"]) or (annotations / f"{line}.xml").exists():
            name = line
        suffix = Path(name).suffix
        names.append(name[: -len(suffix)] if suffix.lower() in _SUFFIXES else name)
    return names


def _class_names(root: Path, names: Iterable[str]) -> set[str]:
    """Return the class names in the annotations of ``names``; test sets may have no files."""
    files = (root / "Annotations" / f"{name}.xml" for name in names)
    return {obj.name for file in files if file.exists() for obj in _parse(file).objects}


def _image_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the image file of each name that has one; names may begin with folders."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder")
    listings: dict[Path, dict[str, Path]] = {}  # one directory read instead of a stat for each name
    found = {}
    for name in names:
        path = folder / name
        if path.parent not in listings:
            files = path.parent.iterdir() if path.parent.is_dir() else ()
            images = [file for file in files if file.suffix.lower() in _SUFFIXES]
            images.sort(key=lambda file: -_SUFFIXES.index(file.suffix.lower()))
            listings[path.parent] = {file.stem: file for file in images}
        if path.name in listings[path.parent]:
            found[name] = listings[path.parent][path.name]
    return found


def _parse(file: Path) -> _Annotation:
    try:
        tree = ElementTree.parse(file).getroot()
    except FileNotFoundError:
        raise DataError(f"{file}: no such annotation file") from None
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:  # Lookup: encoding
        raise DataError(f"{file}: cannot read the annotation ({error})") from None
    if tree.tag != "annotation":
        raise DataError(f"{file}: its root is <{tree.tag}>, expected <annotation>")
    objects = []
    for index, node in enumerate(tree.findall("object")):
        name = (node.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{file}: object[{index}] has no name")
        texts = [node.findtext(f"bndbox/{corner}") for corner in _CORNERS]
        try:
            box = [float(text) for text in texts]  # type: ignore[arg-type]
        except (TypeError, ValueError):
            shown = ", ".join(f"{c} {t!r}" for c, t in zip(_CORNERS, texts, strict=True))
            raise DataError(
                f"{file}: object[{index}] ({name}) has no readable bndbox ({shown})"
            ) from None
        objects.append(_Object(name, box))
    return _Annotation(file, _stated_size(tree), objects)


def _stated_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        height = int(float(tree.findtext("size/height") or 0))
        width = int(float(tree.findtext("size/width") or 0))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _records(
    root: Path,
    images: list[Path],
    annotations: list[_Annotation],
    class_names: list[str],
    outside: str,
    origin: int,
) -> tuple[Records, int, int]:
    """Check all objects; return those with area, how many have none, and how many were clipped."""
    label_of = {name: label for label, name in enumerate(class_names)}
    places = [(i, k) for i, a in enumerate(annotations) for k in range(len(a.objects))]
    objects = [obj for annotation in annotations for obj in annotation.objects]
    for (i, k), obj in zip(places, objects, strict=True):
        if obj.name not in label_of:
            raise DataError(
                f"{annotations[i].file}: object[{k}] has the unknown category '{obj.name}' (the "
                f"classes asked for are {', '.join(class_names)})"
            )
    shapes = [_size(image, a) for image, a in zip(images, annotations, strict=True)]
    sizes = np.array([(width, height) for height, width in shapes], dtype=np.int64)
    image_of = np.array([i for i, _ in places], dtype=np.int64)
    labels = np.array([label_of[obj.name] for obj in objects], dtype=np.int64)
    written = np.array([obj.box for obj in objects], dtype=np.float64).reshape(-1, 4)

    def name(place: int) -> str:
        i, k = places[place]
        box = ", ".join(f"{v:g}" for v in written[place])
        return (
            f"{annotations[i].file.relative_to(root)}: object[{k}] ({objects[place].name}): box "
            f"[{box}] (xmin, ymin, xmax, ymax) of {images[i].name}"
        )

    edges = written - np.array([origin, origin, 0, 0])
    boxes, clipped = fit_boxes(edges, sizes[image_of], outside, root, name)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    unknown, crowd = np.full(len(boxes), np.nan), np.zeros(len(boxes), dtype=bool)
    records = Records(
        np.arange(len(images)),
        map(str, images),
        sizes,
        *(column[kept] for column in (image_of, boxes, labels, unknown, crowd)),
    )
    return records, int((~kept).sum()), clipped


def _size(image: Path, annotation: _Annotation) -> tuple[int, int]:
    """Return (height, width) of a picture, after a look at what its annotation says."""
    height, width = image_size(image, stated=annotation.size)
    if annotation.size not in (None, (height, width)):
        raise DataError(
            f"{annotation.file}: its <size> says {annotation.size[1]} x {annotation.size[0]}, but "
            f"{image.name} is {width} x {height}"
        )
    return height, width
