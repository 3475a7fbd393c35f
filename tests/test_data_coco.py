"""The COCO reader: the real files, what is dropped, the ground truth, and every error."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from shared_data import TINY_COCO, needs_tiny_coco

from detr_fast.data import CocoDetection, DataError

COCO = pytest.importorskip("pycocotools.coco").COCO
COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval


def coco_file(folder, **changes):
    """Two images of 40 x 30, three categories with gaps in their ids; returns (images, json)."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "teal").save(images / name)
    content = {
        "images": [
            {"id": 70, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 11, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 5, "image_id": 70, "category_id": 9, "bbox": [1, 2, 10, 20], "area": 123.0},
            {"id": 6, "image_id": 70, "category_id": 2, "bbox": [30, 20, 10, 10], "iscrowd": 0},
        ],
        "categories": [
            {"id": 9, "name": "nine"},
            {"id": 2, "name": "two"},
            {"id": 4, "name": "four"},
        ],
    } | changes
    file = folder / "instances.json"
    file.write_text(json.dumps(content))
    return images, file


def annotation(**changes):
    return {"id": 5, "image_id": 70, "category_id": 9, "bbox": [1, 2, 10, 20]} | changes


def average_precision(dataset, detections):
    evaluation = COCOeval(dataset.coco, dataset.coco.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def perfect_detections(dataset):
    """What a model without fault would report: every target, by its category id, in xywh."""
    found = []
    for _, target in dataset:
        for (x0, y0, x1, y1), label in zip(target["boxes"].tolist(), target["labels"], strict=True):
            found.append(
                {
                    "image_id": int(target["image_id"]),
                    "category_id": dataset.category_ids[int(label)],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": 0.9,
                }
            )
    return found


@pytest.mark.parametrize("where, images", [("images", "."), (".", "images")])
def test_relative_folders(tmp_path, monkeypatch, where, images):
    _, file = coco_file(tmp_path)
    monkeypatch.chdir(tmp_path / where)
    data = CocoDetection(images, file)
    assert len(data) == 2 and data[0][0].shape == (3, 30, 40)


@needs_tiny_coco
@pytest.mark.parametrize(
    "split, images, boxes, empty", [("train", 13, 73, set()), ("val", 20, 109, {226111, 58636})]
)
def test_tiny_coco_counts(split, images, boxes, empty):
    data = CocoDetection(
        TINY_COCO / f"{split}2017", TINY_COCO / "annotations" / f"instances_{split}2017.json"
    )
    assert len(data) == images
    assert data.dropped == {"crowd": 1, "zero_area": 0}
    targets = [target for _, target in data]
    assert sum(len(t["labels"]) for t in targets) == boxes
    assert {int(t["image_id"]) for t in targets if len(t["labels"]) == 0} == empty
    assert len(data.class_names) == 80 and data.class_names[0] == "person"
    assert data.category_ids[-1] == 90  # 80 labels, ids 1..90 with gaps
    assert f"{images} images, {boxes} boxes, 80 classes" in data.describe()
    assert "1 crowd region dropped" in data.describe()
    assert f"{len(empty)} images without objects" in data.describe()


@needs_tiny_coco
def test_tiny_coco_agrees_with_pycocotools():
    file = TINY_COCO / "annotations" / "instances_val2017.json"
    data = CocoDetection(TINY_COCO / "val2017", file)
    theirs = COCO(str(file))
    for index, (image, target) in enumerate(data):
        expected = [
            a
            for a in theirs.imgToAnns[int(target["image_id"])]
            if not a["iscrowd"] and a["bbox"][2] * a["bbox"][3] > 0
        ]
        entry = theirs.imgs[int(target["image_id"])]
        assert data.record(index).path.name == entry["file_name"]
        assert target["orig_size"].tolist() == [entry["height"], entry["width"]]
        assert image.dtype == torch.uint8
        assert image.shape == (3, entry["height"], entry["width"])
        assert [data.category_ids[k] for k in target["labels"]] == [
            a["category_id"] for a in expected
        ]
        boxes = np.array([a["bbox"] for a in expected], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(target["boxes"].numpy(), boxes, atol=1e-3)


@needs_tiny_coco
def test_ground_truth_gives_ap_1_to_perfect_detections_and_forgives_crowds():
    file = TINY_COCO / "annotations" / "instances_val2017.json"
    data = CocoDetection(TINY_COCO / "val2017", file)
    crowd = [a for a in data.coco.dataset["annotations"] if a["iscrowd"]]
    assert len(crowd) == 1
    detections = perfect_detections(data)
    assert average_precision(data, detections) == pytest.approx(1.0)
    # A confident detection inside the crowd region counts neither way...
    x, y, w, h = crowd[0]["bbox"]
    inside = {
        "image_id": crowd[0]["image_id"],
        "category_id": crowd[0]["category_id"],
        "bbox": [x + 0.4 * w, y + 0.4 * h, w / 5, h / 5],
        "score": 0.99,
    }
    assert average_precision(data, [*detections, inside]) == pytest.approx(1.0)
    # ... but one of another category at the same place does.
    outside = inside | {"category_id": detections[0]["category_id"]}
    assert outside["category_id"] != inside["category_id"]
    assert average_precision(data, [*detections, outside]) < 1.0


def test_ground_truth_is_built_without_a_print(tmp_path, capsys):
    data = CocoDetection(*coco_file(tmp_path))
    assert sorted(data.coco.imgs) == [11, 70]
    assert capsys.readouterr().out == ""


def test_labels_are_contiguous_in_order_of_category_id_and_map_back(tmp_path):
    data = CocoDetection(*coco_file(tmp_path))
    assert data.class_names == ["two", "four", "nine"]
    assert data.category_ids == [2, 4, 9]
    _, target = data[0]
    assert target["labels"].tolist() == [2, 0]
    assert [data.category_ids[k] for k in target["labels"]] == [9, 2]
    assert [a["category_id"] for a in data.coco.loadAnns(data.coco.getAnnIds(imgIds=70))] == [9, 2]


def test_given_classes_fix_the_labels_also_those_the_file_lacks(tmp_path):
    data = CocoDetection(*coco_file(tmp_path), classes=["nine", "unicorn", "two"])
    assert data.class_names == ["nine", "unicorn", "two"]
    assert data[0][1]["labels"].tolist() == [0, 2]
    assert data.category_ids[0] == 9 and data.category_ids[2] == 2
    assert data.category_ids[1] not in (2, 4, 9)
    # "four" is in the file but on no annotation: nothing to complain about.
    assert average_precision(data, perfect_detections(data)) == pytest.approx(1.0)


def test_target_before_transforms(tmp_path):
    image, target = CocoDetection(*coco_file(tmp_path))[0]
    assert type(image).__name__ == "Image" and image.shape == (3, 30, 40)
    assert type(target["boxes"]).__name__ == "BoundingBoxes"
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].canvas_size == (30, 40)
    assert target["boxes"].tolist() == [[1, 2, 11, 22], [30, 20, 40, 30]]
    assert target["labels"].dtype == torch.int64
    assert target["image_id"].shape == () and int(target["image_id"]) == 70
    assert target["orig_size"].tolist() == [30, 40]


def test_image_without_objects_is_kept(tmp_path):
    data = CocoDetection(*coco_file(tmp_path))
    _, target = data[1]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    assert int(target["image_id"]) == 11
    with pytest.raises(IndexError):
        data[2]


def test_crowd_and_zero_area_are_dropped_and_counted(tmp_path):
    data = CocoDetection(
        *coco_file(
            tmp_path,
            annotations=[
                annotation(id=1, bbox=[3, 3, 0, 5]),
                annotation(id=2, bbox=[3, 3, 5, 0]),
                annotation(id=3, bbox=[2, 2, 30, 20], iscrowd=1),
                annotation(id=4, bbox=[5, 5, 4, 4], area=9.5),
                annotation(id=5, bbox=[6, 6, 4, 4]),
            ],
        )
    )
    assert data.dropped == {"crowd": 1, "zero_area": 2}
    assert data[0][1]["boxes"].tolist() == [[5, 5, 9, 9], [6, 6, 10, 10]]
    truth = data.coco.dataset["annotations"]
    assert [a["iscrowd"] for a in truth] == [0, 0, 1]
    assert [a["area"] for a in truth[:2]] == [9.5, 16.0]  # the outline's area, else the box's
    assert all(a["id"] > 0 for a in truth)
    assert "2 zero-area boxes dropped, 1 crowd region dropped" in data.describe()


def test_overhang_of_a_pixel_is_clipped(tmp_path):
    boxes = [[-0.6, 0, 10, 10], [30, 20, 10.5, 10.9], [40, 3, 1, 5]]
    entries = [annotation(id=k, bbox=box) for k, box in enumerate(boxes)]
    data = CocoDetection(*coco_file(tmp_path, annotations=entries))
    expected = torch.tensor([[0, 0, 9.4, 10], [30, 20, 40, 30]])
    torch.testing.assert_close(data[0][1]["boxes"].as_subclass(torch.Tensor), expected)
    assert data.dropped["zero_area"] == 1  # nothing of the third is inside


def test_all_bad_boxes_are_counted_and_the_first_ones_named(tmp_path):
    entries = [annotation(id=k, bbox=[30, 5, 12 + k, 9]) for k in range(7)]
    images, file = coco_file(tmp_path, annotations=[annotation(id=9), *entries])
    with pytest.raises(DataError) as caught:
        CocoDetection(images, file)
    message = str(caught.value)
    assert message.startswith(
        f"{file}: 7 of 8 boxes are wrong: annotation 0: box [30, 5, 12, 9] (x, y, w, h) of a.png "
        "reaches outside its 40 x 30 image; annotation 1: "
    )
    assert message.count("annotation ") == 5 and "annotation 4: " in message
    assert message.endswith("image; ...; --boxes clip cuts boxes to their images")


def test_boxes_outside_are_clipped_on_request(tmp_path):
    boxes = [[30, -20, 50, 100], [1, 2, 10, 20], [50, 5, 5, 5]]
    entries = [annotation(id=k, bbox=box) for k, box in enumerate(boxes)]
    data = CocoDetection(*coco_file(tmp_path, annotations=entries), boxes="clip")
    assert data[0][1]["boxes"].tolist() == [[30, 0, 40, 30], [1, 2, 11, 22]]
    assert "2 boxes clipped, 1 zero-area box dropped" in data.describe()
    assert average_precision(data, perfect_detections(data)) == pytest.approx(1.0)


IMAGE = {"id": 70, "file_name": "a.png", "width": 40, "height": 30}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"annotations": [annotation(bbox=[30, 5, 12, 9])]}, ["annotation 5", "[30, 5, 12, 9]",
         "outside its 40 x 30 image", "a.png"]),
        ({"annotations": [annotation(bbox=[-2, 5, 12, 9])]}, ["annotation 5", "outside"]),
        ({"annotations": [annotation(bbox=[5, 5, -3, 9])]}, ["annotation 5", "negative size"]),
        ({"annotations": [annotation(bbox=[5, float("nan"), 3, 9])]},
         ["annotation 5", "not finite"]),
        ({"annotations": [annotation(bbox=[5, 5, 10**400, 9])]}, ["annotation 5", "not finite"]),
        ({"annotations": [annotation(area=2e10)]}, ["annotation 5", "'area'", "at most 1e+10"]),
        ({"annotations": [annotation(iscrowd="0")]}, ["annotation 5", "'iscrowd' '0'"]),
        ({"annotations": [annotation(bbox=[5, 5, 3])]}, ["annotation 5", "expected 4 numbers"]),
        ({"annotations": [annotation(bbox=None)]}, ["annotation 5", "expected 4 numbers"]),
        ({"annotations": [annotation(category_id=77)]},
         ["annotation 5", "unknown category id 77"]),
        ({"annotations": [annotation(image_id=1)]}, ["annotation 5", "unknown image id 1"]),
        ({"annotations": [annotation(image_id=[1])]}, ["annotation 5", "'image_id' [1]"]),
        ({"annotations": [{"id": 8, "image_id": 70, "category_id": 9}]},
         ["annotation 8", "no 'bbox'"]),
        ({"annotations": [{"image_id": 70, "bbox": [0, 0, 1, 1]}]},
         ["annotations[0]", "no 'category_id'"]),
        ({"annotations": ["box"]}, ["annotations[0]", "not an object"]),
        ({"annotations": None}, ["no list 'annotations'"]),
        ({"images": [IMAGE | {"file_name": "gone.png"}]}, ["gone.png: no such image file"]),
        ({"images": [IMAGE, IMAGE]}, ["images[1]", "repeats the image id 70"]),
        ({"images": [IMAGE | {"width": 0}]}, ["images[0] (a.png)", "0 x 30"]),
        ({"images": [IMAGE | {"id": 2**53 + 1}]},
         ["images[0]", "'id' 9007199254740993", "at most 2**53"]),
        ({"images": [IMAGE | {"id": 10**400}]}, ["images[0]", "at most 2**53"]),
        ({"images": [IMAGE | {"id": "seventy"}]}, ["images[0]", "'seventy'"]),
        ({"images": [{"id": 70, "file_name": "a.png", "height": 30}]},
         ["images[0]", "no 'width'"]),
        ({"categories": [{"id": 9, "name": "x"}, {"id": 9, "name": "y"}]},
         ["categories[1]", "repeats the category id 9"]),
        ({"categories": [{"id": 9, "name": "x"}, {"id": 2, "name": "x"}]},
         ["categories[1]", "repeats the category name 'x'"]),
    ],
)  # fmt: skip
def test_bad_entries_are_named_in_one_line(tmp_path, changes, words):
    images, file = coco_file(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        CocoDetection(images, file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("root", "box_of", "classes"),
    [
        ({"name": "hand", "supercategory": "none"}, 9, ["hand"]),  # as Roboflow writes it
        ({"name": "hand", "supercategory": "none"}, 9.0, ["hand"]),
        ({"name": "hands"}, 9, ["hands", "hand"]),  # nobody's supercategory
        ({"name": "body", "supercategory": "none"}, 2, ["body", "hand"]),  # it has a box
        ({"name": "body", "supercategory": "life"}, 9, ["body", "hand"]),  # a class among others
    ],
)
def test_a_group_of_categories_is_no_class(tmp_path, root, box_of, classes):
    parent = root["name"] if root["name"] != "hands" else "none"
    images, file = coco_file(
        tmp_path,
        categories=[{"id": 2, **root}, {"id": 9, "name": "hand", "supercategory": parent}],
        annotations=[{"image_id": 70, "category_id": box_of, "bbox": [1, 1, 5, 5]}],
    )
    data = CocoDetection(images, file)
    assert data.class_names == classes
    assert data.boxes_per_class()[classes[-1] if box_of == 9 else "body"] == 1


def test_category_not_among_the_classes_asked_for(tmp_path):
    images, file = coco_file(tmp_path)
    with pytest.raises(DataError) as caught:
        CocoDetection(images, file, classes=["two", "four"])
    assert str(caught.value) == (
        f"{file}: annotation 5 has the unknown category 'nine' "
        "(the classes asked for are two, four)"
    )


def test_wrong_paths_and_broken_json(tmp_path):
    images, file = coco_file(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such image folder"):
        CocoDetection(tmp_path / "nowhere", file)
    with pytest.raises(DataError, match=r"nothing\.json: no such annotation file"):
        CocoDetection(images, tmp_path / "nothing.json")
    file.write_text('{"images": [')
    with pytest.raises(DataError, match=r"instances\.json: cannot read the annotations"):
        CocoDetection(images, file)
    file.write_text('{"images": ' + "[" * 100_000)
    with pytest.raises(DataError, match=r"instances\.json: cannot read the annotations"):
        CocoDetection(images, file)
    file.write_text("[1, 2]")
    with pytest.raises(DataError, match="no list 'images'"):
        CocoDetection(images, file)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    images, file = coco_file(tmp_path)
    expected = CocoDetection(images, file).describe()
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert CocoDetection(images, file).describe() == expected


def test_image_of_another_size_than_annotated(tmp_path):
    images, file = coco_file(tmp_path)
    Image.new("RGB", (80, 60)).save(images / "a.png")
    data = CocoDetection(images, file)
    with pytest.raises(DataError, match=r"a\.png: the image is 80 x 60, .* made for 40 x 30"):
        data[0]
    data[1]  # the others can still be read


def test_items_from_the_end_and_items_that_are_changed(tmp_path):
    data = CocoDetection(*coco_file(tmp_path))
    assert torch.equal(data[-2][1]["boxes"], data[0][1]["boxes"])
    data[0][1]["labels"].zero_()
    data[0][1]["boxes"].zero_()
    assert data[0][1]["labels"].tolist() == [2, 0] and data[0][1]["boxes"].any()


@pytest.mark.parametrize(("stated", "used"), [(0, 0), (-1, 16)])
def test_an_area_that_cannot_be_is_the_boxs(tmp_path, stated, used):
    entry = annotation(id=1, bbox=[1, 1, 4, 4], area=stated)
    data = CocoDetection(*coco_file(tmp_path, annotations=[entry]))
    assert data.coco.dataset["annotations"][0]["area"] == used


def test_a_crowd_without_area_is_dropped_once(tmp_path):
    entry = annotation(bbox=[3, 3, 0, 5], iscrowd=1)
    data = CocoDetection(*coco_file(tmp_path, annotations=[entry]))
    assert data.dropped == {"crowd": 1, "zero_area": 0}


def test_a_truth_value_is_no_coordinate(tmp_path):
    with pytest.raises(DataError, match="expected 4 numbers"):
        CocoDetection(*coco_file(tmp_path, annotations=[annotation(bbox=[1, 1, True, 5])]))


def test_ids_of_classes_that_the_file_lacks_are_their_own(tmp_path):
    categories = [{"id": 1, "name": "two"}, {"id": 2, "name": "nine"}]
    files = coco_file(tmp_path, categories=categories, annotations=[annotation(category_id=2)])
    data = CocoDetection(*files, classes=["unicorn", "nine", "two", "griffin"])
    assert len(set(data.category_ids)) == 4
