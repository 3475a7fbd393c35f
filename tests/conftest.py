"""Small data sets on disk, shared by the tests of training and of the command line."""

import json
import sys
from pathlib import Path

import pytest
from devices import why_not_here
from torchvision.transforms.functional import to_pil_image

from detr_fast.data import Shapes

# For ``benchmarks``, which is not installed. Last, so that an installed detr_fast goes before the
# source folder's, which may have no compiled module.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def pytest_addoption(parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long forms of some tests")


def pytest_collection_modifyitems(items: list) -> None:
    """Skip the tests of a GPU where there is none.

    Those that tests/test_cuda_emulated.py imports are left out: it emulates a GPU on the CPU.
    """
    items[:] = [
        item
        for item in items
        if item.path.stem != "test_cuda_emulated" or not item.get_closest_marker("gpu")
    ]
    for item in items:
        for mark in item.iter_markers("gpu"):
            if reason := why_not_here(**mark.kwargs):
                item.add_marker(pytest.mark.skip(reason=reason))


def _write_images(folder: Path, shapes: Shapes) -> None:
    folder.mkdir(parents=True)
    for index in range(len(shapes)):
        image, _ = shapes[index]
        to_pil_image(image).save(folder / f"{index}.jpg", quality=95)


@pytest.fixture(scope="session")
def voc_folder(tmp_path_factory) -> Path:
    """A Pascal VOC folder: 12 images of shapes to train on, 6 to validate, 5 of those as test.

    They are 64 pixels wide.
    """
    root = tmp_path_factory.mktemp("voc")
    shapes = Shapes(18, image_size=64, seed=5)
    _write_images(root / "JPEGImages", shapes)
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for index in range(len(shapes)):
        record = shapes.record(index)
        objects = "".join(
            f"<object><name>{shapes.class_names[label]}</name><bndbox><xmin>{x1}</xmin>"
            f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), label in zip(record.boxes, record.labels, strict=True)
        )
        (root / "Annotations" / f"{index}.xml").write_text(
            f"<annotation><filename>{index}.jpg</filename><size><width>64</width>"
            f"<height>64</height><depth>3</depth></size>{objects}</annotation>"
        )
    for split, numbers in (("train", range(12)), ("val", range(12, 18)), ("test", range(12, 17))):
        names = "".join(f"{number}\n" for number in numbers)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    return root


@pytest.fixture(scope="session")
def coco_files(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 8 images and its COCO json, with sparse category ids and one crowd region."""
    root = tmp_path_factory.mktemp("coco")
    shapes = Shapes(8, image_size=64, seed=6)
    _write_images(root / "images", shapes)
    category_ids = [3, 17, 90]
    annotations = []
    for index in range(len(shapes)):
        record = shapes.record(index)
        for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 100,
                    "category_id": category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(len(annotations) == 0),
                }
            )
    truth = {
        "images": [
            {"id": i + 100, "file_name": f"{i}.jpg", "width": 64, "height": 64}
            for i in range(len(shapes))
        ],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name}
            for i, name in zip(category_ids, shapes.class_names, strict=True)
        ],
    }
    (root / "truth.json").write_text(json.dumps(truth))
    return root / "images", root / "truth.json"
