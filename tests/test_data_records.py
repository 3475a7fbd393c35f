"""Records in a few arrays: what goes in comes out, and no object per image stays behind."""

import dataclasses
import gc
import pickle
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_data_coco import annotation, coco_file

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
    part = records[2:9:3]
    assert isinstance(part, Records) and part.image_ids.tolist() == ids[2:9:3]
    for index in (30, -31):
        with pytest.raises(IndexError, match=f"index {index} of 30 records"):
            records[index]
    assert len(Records.pack([])) == 0


@pytest.mark.parametrize("pickled", [False, True])
def test_none_is_changed_unnoticed(pickled: bool) -> None:
    """A new size would be lost, as the next record is made anew; counts divide the arrays."""
    records = Records.pack(_random_records(1))
    if pickled:
        records = pickle.loads(pickle.dumps(records))
    record = next(record for record in records if len(record.boxes))
    with pytest.raises(AttributeError):
        record.width = 5
    dataset = DetectionDataset(records, list("abcde"), range(5))
    for array in (record.boxes, record.labels, dataset.objects_per_image):
        with pytest.raises(ValueError, match="read-only"):
            array += 1


def test_copied() -> None:
    boxes = np.array([[1.0, 2.0, 3.0, 4.0]])
    records = Records.pack([Record(1, None, 60, 60, boxes, np.array([0]))])
    boxes += 7
    assert records[0].boxes.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float32"])
def test_areas_of_boxes_of_any_type(dtype: str) -> None:
    boxes = np.array([[0, 0, 250, 200], [3, 4, 5, 6]]).astype(dtype)
    records = Records.pack([Record(1, None, 300, 300, boxes, np.array([0, 1], dtype="uint8"))])
    assert records[0].areas.tolist() == [50_000, 4]
    assert (records[0].boxes.dtype, records[0].labels.dtype) == (np.float64, np.int64)


@pytest.mark.parametrize("boxes", [[], np.array([]), np.zeros((0, 4)), np.zeros((0, 4), int)])
@pytest.mark.parametrize("labels", [[], np.array([]), np.zeros(0, int)])
def test_without_objects(boxes: object, labels: object) -> None:
    records = Records.pack([Record(1, None, 60, 60, boxes, labels), *_random_records(0)])
    assert (records[0].boxes.shape, records[0].labels.dtype) == ((0, 4), np.int64)


def test_wrong_shapes() -> None:
    boxes, labels = _some(np.random.default_rng(0), 3)
    values = dict(zip(ARRAYS, (boxes, labels, np.ones(3), boxes, labels), strict=True))
    cut = [{name: values[name][:2]} for name in ARRAYS]
    for wrong in (*cut, {"boxes": boxes[:, :3]}, {"labels": labels[:, None]}, {"boxes": 5.0}):
        records = [
            Record(8, None, 60, 60, **values),
            Record(9, None, 60, 60, **values | wrong),
        ]
        with pytest.raises(ValueError, match=r"^image 9: boxes \[.*\] do not fit each other$"):
            Records.pack(records)


@pytest.mark.parametrize(
    "image_id, width, labels, error",
    [
        (1.5, 60, [0], "image 1.5: 'float' object cannot be interpreted as an integer"),
        ("1", 60, [0], "image 1: 'str' object cannot be interpreted as an integer"),
        (2**70, 60, [0], f"image {2**70}: Python int too large"),
        (1, 60.0, [0], "image 1: 'float' object cannot be interpreted as an integer"),
        (1, 60, [0.5], "image 1: labels are float64, expected whole numbers"),
        (1, 60, ["a"], "image 1: labels are <U1, expected whole numbers"),
    ],
)
def test_whole_numbers(image_id: object, width: object, labels: list, error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        Records.pack([Record(image_id, None, width, 60, np.ones((1, 4)), np.array(labels))])


def test_a_source_that_overrides_record() -> None:
    class Relabelled(DetectionDataset):
        def record(self, index: int) -> Record:
            record = super().record(index)
            return dataclasses.replace(record, labels=record.labels * 0 + 3)

    dataset = Relabelled(_random_records(2), list("abcde"), range(1, 6))
    assert set(dataset.boxes_per_class().values()) == {0, dataset.objects_per_image.sum()}
    labels = {a["category_id"] for a in dataset.coco.dataset["annotations"] if not a["iscrowd"]}
    assert labels == {4}


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize("crowd", [False, True])
def test_label_without_class(label: int, crowd: bool) -> None:
    kind = "crowd_" if crowd else ""
    wrong = {f"{kind}boxes": np.ones((2, 4)), f"{kind}labels": np.array([1, label])}
    records = [Record(5, None, 60, 60), Record(6, None, 60, 60, **wrong), Record(7, None, 60, 60)]
    with pytest.raises(ValueError, match=f"image 6: label {label}, expected 0..1"):
        DetectionDataset(records, ["a", "b"], [1, 2])


def test_memory_of_a_coco_file(tmp_path: Path) -> None:
    """No objects stay per image, nor are all outlines in memory while the file is read."""
    size, outline = {"width": 40, "height": 30}, [x + 0.5 for x in range(200)]
    images, file = coco_file(
        tmp_path,
        images=[{"id": k, "file_name": "a.png", **size} for k in range(1000)],
        annotations=[
            annotation(id=k, image_id=k // 3, segmentation=[outline]) for k in range(3000)
        ],
    )
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
