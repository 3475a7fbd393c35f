"""Records in a few arrays: what goes in comes out, and no object per image stays behind."""

import gc
import json
import pickle
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from detr_fast.data import CocoDetection, DetectionDataset, Record, Records

ARRAYS = ("boxes", "labels", "areas", "crowd_boxes", "crowd_labels")


def _some(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    corners = rng.random((count, 2)) * 50
    boxes = np.concatenate([corners, corners + 1 + rng.random((count, 2))], axis=1)
    return boxes, rng.integers(0, 5, count)


def _random_records(seed: int) -> list[Record]:
    rng = np.random.default_rng(seed)
    records = []
    for k in range(30):
        boxes, labels = _some(rng, rng.integers(0, 4))
        crowds = _some(rng, rng.integers(0, 3))
        areas = rng.random(len(boxes)) if k % 2 else None
        path = Path(f"/data/b\udcff/ä {k}.jpg") if k % 3 else None
        image_id = int(rng.integers(2**50))
        records.append(Record(image_id, path, 60 + k, 70, boxes, labels, areas, *crowds))
    return records


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pickled", [False, True])
def test_round_trip(seed: int, pickled: bool) -> None:
    expected = _random_records(seed)
    records = Records.pack(expected)
    if pickled:  # as to workers that were not forked
        records = pickle.loads(pickle.dumps(records))
    assert len(records) == len(expected)
    for record, wanted in zip(records, expected, strict=True):
        assert (record.image_id, record.path) == (wanted.image_id, wanted.path)
        assert (record.width, record.height) == (wanted.width, wanted.height)
        for name in ARRAYS:
            value, original = getattr(record, name), getattr(wanted, name)
            if original is None:
                width, height = (wanted.boxes[:, 2:] - wanted.boxes[:, :2]).T
                original = width * height
            np.testing.assert_array_equal(value, original, strict=True)
    counts = [len(record.labels) for record in expected]
    assert records.object_counts.tolist() == counts
    labels = np.concatenate([record.labels for record in expected])
    assert records.count_labels(7).tolist() == np.bincount(labels, minlength=7).tolist()


def test_a_sequence() -> None:
    records = Records.pack(_random_records(0))
    ids = records.image_ids.tolist()
    assert records[-1].image_id == ids[-1]
    assert [record.image_id for record in records[2:9:3]] == ids[2:9:3]
    for index in (30, -31):
        with pytest.raises(IndexError):
            records[index]
    assert len(Records.pack([])) == 0


def test_none_is_changed_unnoticed() -> None:
    record = Records.pack(_random_records(1))[0]
    with pytest.raises(AttributeError):  # it would be lost: the next one is made anew
        record.width = 5


@pytest.mark.parametrize("name", ARRAYS)
def test_lengths_differ(name: str) -> None:
    boxes, labels = _some(np.random.default_rng(0), 3)
    values = dict(zip(ARRAYS, (boxes, labels, np.ones(3), boxes, labels), strict=True))
    records = [
        Record(8, None, 60, 60, **values),
        Record(9, None, 60, 60, **values | {name: values[name][:2]}),
    ]
    with pytest.raises(ValueError, match="image 9: boxes, labels and areas differ in number"):
        Records.pack(records)


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize("crowd", [False, True])
def test_label_without_class(label: int, crowd: bool) -> None:
    kind = "crowd_" if crowd else ""
    wrong = {f"{kind}boxes": np.ones((2, 4)), f"{kind}labels": np.array([1, label])}
    records = [Record(5, None, 60, 60), Record(6, None, 60, 60, **wrong), Record(7, None, 60, 60)]
    with pytest.raises(ValueError, match=f"image 6: label {label}, expected 0..1"):
        DetectionDataset(records, ["a", "b"], [1, 2])


def test_labels_are_whole_numbers() -> None:
    with pytest.raises(TypeError):
        Records.pack([Record(1, None, 60, 60, np.ones((1, 4)), np.array([0.5]))])


def _write_coco(folder: Path, images: int) -> tuple[Path, Path]:
    (folder / "images").mkdir()
    entries, annotations = [], []
    for k in range(images):
        (folder / "images" / f"{k}.jpg").touch()
        entries.append({"id": 10 * k, "file_name": f"{k}.jpg", "width": 64, "height": 48})
        for _ in range(3):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": 10 * k,
                    "category_id": 1,
                    "bbox": [1.5, 2.5, 30.5, 20.5],
                    "iscrowd": 0,
                    "area": 5.5,
                    "segmentation": [[x + 0.5 for x in range(200)]],
                }
            )
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "x"}],
    }
    file = folder / "train.json"
    file.write_text(json.dumps(content))
    return folder / "images", file


def test_memory_of_a_coco_file(tmp_path: Path) -> None:
    """No objects stay per image, nor are all outlines in memory while the file is read."""
    images, file = _write_coco(tmp_path, 1000)
    CocoDetection(images, file)  # what is kept once for all
    gc.collect()
    before = sys.getallocatedblocks()
    dataset = CocoDetection(images, file)
    gc.collect()
    assert sys.getallocatedblocks() - before < 200
    del dataset
    tracemalloc.start()
    CocoDetection(images, file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    outlines = 3000 * 200 * (sys.getsizeof(0.5) + 8)
    assert peak < file.stat().st_size * 1.5 + 0.5 * outlines
