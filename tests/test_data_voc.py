"""The Pascal VOC reader: the real files, sizes and splits, and every error."""

import re

import pytest
from PIL import Image
from shared_data import BCCD, needs_bccd

from detr_fast.data import DataError, VocDetection


def voc_folder(root, objects, size=(40, 30), image_size=(40, 30), splits=None):
    """A VOC folder; ``objects`` maps image names to lists of (class name, xyxy)."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, entries in objects.items():
        Image.new("RGB", image_size, "olive").save(root / "JPEGImages" / f"{name}.jpg")
        stated = "" if size is None else f"<width>{size[0]}</width><height>{size[1]}</height>"
        body = "".join(
            f"<object><name>{label}</name><difficult>1</difficult><bndbox><xmin>{x0}</xmin>"
            f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in entries
        )
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size>{stated}</size>{body}</annotation>"
        )
    for split, names in (splits or {"train": list(objects)}).items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


@needs_bccd
@pytest.mark.parametrize(
    "split, images, boxes, zero_area",
    [("train", 205, 2804, 1), ("val", 87, 1137, 1), ("test", 72, 945, 0)],
)
def test_bccd_counts(split, images, boxes, zero_area):
    data = VocDetection(BCCD, split)
    assert data.class_names == ["Platelets", "RBC", "WBC"]
    assert data.category_ids == [1, 2, 3]
    assert len(data) == images
    assert sum(len(data.record(i).labels) for i in range(images)) == boxes
    assert data.dropped == {"crowd": 0, "zero_area": zero_area}
    assert data.describe().startswith(f"{images} images, {boxes:,} boxes, 3 classes")


@needs_bccd
def test_bccd_first_image_as_labelled():
    data = VocDetection(BCCD, "train")
    names = (BCCD / "ImageSets/Main/train.txt").read_text().split()
    index = names.index("BloodImage_00001")
    image, target = data[index]
    assert image.shape == (3, 480, 640)
    assert data.record(index).path == BCCD / "JPEGImages" / "BloodImage_00001.jpg"
    assert target["orig_size"].tolist() == [480, 640]
    assert target["boxes"].tolist()[0] == [68, 315, 286, 480]
    assert data.class_names[int(target["labels"][0])] == "WBC"


@needs_bccd
def test_bccd_ground_truth_has_every_box_of_the_targets():
    pytest.importorskip("pycocotools")
    data = VocDetection(BCCD, "test")
    truth = data.coco.dataset
    assert len(truth["images"]) == 72 and len(truth["annotations"]) == 945
    assert truth["categories"] == [
        {"id": 1, "name": "Platelets"},
        {"id": 2, "name": "RBC"},
        {"id": 3, "name": "WBC"},
    ]
    third = data.coco.loadAnns(data.coco.getAnnIds(imgIds=data.record(3).image_id))
    assert [a["category_id"] - 1 for a in third] == data.record(3).labels.tolist()


def test_classes_are_those_of_all_splits(tmp_path):
    root = voc_folder(
        tmp_path,
        {"a": [("zebra", (1, 1, 9, 9))], "b": [("ant", (1, 1, 9, 9))]},
        splits={"train": ["a"], "val": ["b"], "aeroplane_train": ["a  1", "b -1"]},
    )
    train, val = VocDetection(root, "train"), VocDetection(root, "val")
    assert train.class_names == val.class_names == ["ant", "zebra"]
    assert train[0][1]["labels"].tolist() == [1] and val[0][1]["labels"].tolist() == [0]
    assert len(VocDetection(root, "aeroplane_train")) == 2  # VOC's per-class lists with flags


def test_names_may_have_spaces_suffixes_and_other_formats(tmp_path):
    objects = {"cell 1": [("cell", (1, 1, 9, 9))], "b": []}
    root = voc_folder(tmp_path, objects, splits={"train": ["cell 1", "b.jpg"]})
    (root / "JPEGImages" / "b.jpg").rename(root / "JPEGImages" / "b.PNG")
    data = VocDetection(root)
    assert [data.record(i).path.name for i in range(2)] == ["cell 1.jpg", "b.PNG"]
    assert data[1][0].shape == (3, 30, 40) and len(data[1][1]["labels"]) == 0


def test_images_may_be_in_folders(tmp_path):
    root = voc_folder(tmp_path, {"a": [("cell", (1, 1, 9, 9))], "b": []}, splits={"train": ["a"]})
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "camera 1").mkdir()
    (root / "JPEGImages" / "b.jpg").rename(root / "JPEGImages" / "camera 1" / "a.jpg")
    (root / "Annotations" / "b.xml").rename(root / "Annotations" / "camera 1" / "a.xml")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\ncamera 1/a.jpg\n")
    data = VocDetection(root)
    paths = [data.record(i).path.relative_to(root / "JPEGImages").as_posix() for i in range(2)]
    assert paths == ["a.jpg", "camera 1/a.jpg"]
    assert [len(target["labels"]) for _, target in data] == [1, 0]


def test_difficult_kept_zero_area_counted_overhang_clipped(tmp_path):
    boxes = [(0, 0, 40, 30), (5, 5, 5, 9), (30.5, 20, 41, 30.9)]
    data = VocDetection(voc_folder(tmp_path, {"a": [("x", box) for box in boxes]}))
    assert data[0][1]["boxes"].tolist() == [[0, 0, 40, 30], [30.5, 20, 40, 30]]
    assert data.dropped == {"crowd": 0, "zero_area": 1}


@pytest.mark.parametrize("stated", [None, (0, 0)])
def test_size_that_is_missing_or_zero_is_taken_from_the_image(tmp_path, stated):
    data = VocDetection(voc_folder(tmp_path, {"a": [("x", (1, 1, 39, 29))]}, size=stated))
    assert data[0][1]["orig_size"].tolist() == [30, 40]


def test_size_that_disagrees_with_the_image(tmp_path):
    root = voc_folder(tmp_path, {"a": [("x", (1, 1, 9, 9))]}, size=(80, 60))
    with pytest.raises(DataError, match=r"a\.xml: its <size> says 80 x 60, but a\.jpg is 40 x 30"):
        VocDetection(root)


@pytest.mark.parametrize(
    "box, words",
    [
        ((1, 1, 50, 9), "outside its 40 x 30 image"),
        ((-3, 1, 5, 9), "outside its 40 x 30 image"),
        ((9, 1, 5, 9), "negative size"),
        ((1, 1, "inf", 9), "not finite"),
    ],
)
def test_bad_box_names_file_and_object(tmp_path, box, words):
    root = voc_folder(tmp_path, {"a": [("ok", (1, 1, 9, 9)), ("bad", box)]})
    with pytest.raises(DataError) as caught:
        VocDetection(root)
    message = str(caught.value)
    place = "Annotations/a.xml: object[1] (bad): box"
    assert message.startswith(f"{root}: {place}")
    assert words in message and "\n" not in message
    assert ("--boxes clip" in message) == ("outside" in words)  # the others it does not help


def test_unreadable_box_names_file_and_object(tmp_path):
    root = voc_folder(tmp_path, {"a": [("ok", (1, 1, 9, 9)), ("bad", (1, 1, "wide", 9))]})
    with pytest.raises(DataError, match=r"a\.xml: object\[1\] \(bad\) has no readable bndbox"):
        VocDetection(root)


def test_all_bad_boxes_are_counted_and_the_first_ones_named(tmp_path):
    good, outside, turned = ("ok", (1, 1, 9, 9)), ("out", (30, 5, 50, 9)), ("no", (9, 1, 5, 9))
    root = voc_folder(tmp_path, {"a": [good, outside, turned], "b": [], "c": [good, outside]})
    with pytest.raises(DataError) as caught:
        VocDetection(root)
    assert str(caught.value) == (
        f"{root}: 3 of 5 boxes are wrong: Annotations/a.xml: object[1] (out): box [30, 5, 50, 9] "
        "(xmin, ymin, xmax, ymax) of a.jpg reaches outside its 40 x 30 image; Annotations/a.xml: "
        "object[2] (no): box [9, 1, 5, 9] (xmin, ymin, xmax, ymax) of a.jpg has a negative size; "
        "Annotations/c.xml: object[1] (out): box [30, 5, 50, 9] (xmin, ymin, xmax, ymax) of c.jpg "
        "reaches outside its 40 x 30 image; --boxes clip cuts boxes to their images"
    )
    with pytest.raises(DataError) as caught:
        VocDetection(root, boxes="clip")  # one is left that no cutting mends
    assert str(caught.value).endswith(
        "box [9, 1, 5, 9] (xmin, ymin, xmax, ymax) of a.jpg has a negative size"
    )


def test_boxes_outside_are_clipped_on_request(tmp_path):
    boxes = [(-9, -2, 20, 50), (5, 5, 9, 9), (60, 5, 70, 9), (30, 20, 41, 30)]
    root = voc_folder(tmp_path, {"a": [("x", box) for box in boxes], "b": [("y", boxes[0])]})
    data = VocDetection(root, boxes="clip")
    kept = [[0, 0, 20, 30], [5, 5, 9, 9], [30, 20, 40, 30]]
    assert data[0][1]["boxes"].tolist() == kept and data[0][1]["labels"].tolist() == [0, 0, 0]
    assert data[1][1]["boxes"].tolist() == [[0, 0, 20, 30]]
    assert [a["bbox"] for a in data.coco.dataset["annotations"]][1] == [5, 5, 4, 4]
    assert "4 boxes, 2 classes (x, y), 3 boxes clipped, 1 zero-area box dropped" in data.describe()
    with pytest.raises(ValueError, match="boxes is 'cut', expected one of error, clip"):
        VocDetection(root, boxes="cut")


def test_origin_1_counts_from_one_and_includes_the_last_pixel(tmp_path):
    boxes = [(1, 1, 40, 30), (5, 7, 5, 7)]
    root = voc_folder(tmp_path, {"a": [("x", box) for box in boxes]})
    data = VocDetection(root, origin=1)
    assert data[0][1]["boxes"].tolist() == [[0, 0, 40, 30], [4, 6, 5, 7]]
    assert data.dropped["zero_area"] == 0  # a single pixel has an area
    assert VocDetection(root)[0][1]["boxes"].tolist() == [[1, 1, 40, 30]]
    with pytest.raises(ValueError, match="origin is 2, expected 0 or 1"):
        VocDetection(root, origin=2)
    root = voc_folder(tmp_path, {"a": [("x", (1, 1, 50, 30))]})
    with pytest.raises(DataError, match=r"box \[1, 1, 50, 30\]"):  # as it is written
        VocDetection(root, origin=1)


def test_unknown_category_names_file_and_object(tmp_path):
    root = voc_folder(tmp_path, {"a": [("cat", (1, 1, 9, 9)), ("dog", (1, 1, 9, 9))]})
    with pytest.raises(DataError) as caught:
        VocDetection(root, classes=["cat", "cow"])
    assert str(caught.value) == (
        f"{root / 'Annotations' / 'a.xml'}: object[1] has the unknown category 'dog' "
        "(the classes asked for are cat, cow)"
    )
    assert VocDetection(root, classes=["dog", "cat"])[0][1]["labels"].tolist() == [1, 0]


def test_missing_pieces_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        VocDetection(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a Pascal VOC folder"):
        VocDetection(tmp_path)
    root = voc_folder(
        tmp_path, {"a": [], "b": []}, splits={"train": ["a", "b"], "val": ["b"], "test": []}
    )
    with pytest.raises(DataError, match=r"trian\.txt: no such split, expected test, train, val"):
        VocDetection(root, "trian")
    with pytest.raises(DataError, match=r"test\.txt: the split lists no images"):
        VocDetection(root, "test")
    (root / "JPEGImages" / "b.jpg").unlink()
    message = r"b\.jpg: no such image file, but the split 'train' lists it"
    with pytest.raises(DataError, match=message):
        VocDetection(root)
    (root / "Annotations" / "a.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match=r"a\.xml: cannot read the annotation"):
        VocDetection(root)
    (root / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"a\.xml: no such annotation file"):
        VocDetection(root)


def test_object_without_a_name_and_name_listed_twice(tmp_path):
    root = voc_folder(tmp_path, {"a": [(" ", (1, 1, 9, 9))]})
    with pytest.raises(DataError, match=r"a\.xml: object\[0\] has no name"):
        VocDetection(root)
    root = voc_folder(tmp_path, {"a": []}, splits={"train": ["a", "a"]})
    with pytest.raises(DataError, match=r"train\.txt: 'a' is listed twice"):
        VocDetection(root)


@pytest.mark.parametrize("root", ["html", "{http://example.org}annotation"])
def test_another_kind_of_xml_is_refused(tmp_path, root):
    """It has no objects that could be found, and would count as an image without any."""
    folder = voc_folder(tmp_path, {"a": [("x", (1, 1, 9, 9))]})
    file = folder / "Annotations" / "a.xml"
    tag = root.removeprefix("{http://example.org}")
    space = ' xmlns="http://example.org"' if tag != root else ""
    file.write_text(f"<{tag}{space}><filename>a.jpg</filename></{tag}>")
    with pytest.raises(DataError, match=re.escape(f"a.xml: its root is <{root}>, expected")):
        VocDetection(folder)


def test_of_two_files_of_one_name_the_jpeg_is_taken(tmp_path):
    root = voc_folder(tmp_path, {"a": [("x", (1, 1, 9, 9))]})
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "a.png")
    assert VocDetection(root).record(0).path.name == "a.jpg"
