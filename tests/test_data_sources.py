"""``open_dataset`` and the padding collate."""

import pytest
import torch
from PIL import Image
from shared_data import BCCD, TINY_COCO, needs_bccd, needs_tiny_coco

from detr_fast.data import (
    CocoDetection,
    DataError,
    Shapes,
    VocDetection,
    collate,
    detr_eval,
    fixed_eval,
    open_dataset,
)


def test_shapes_splits_are_disjoint_and_only_train_is_fresh():
    splits = {s: open_dataset("shapes", s, num_images=20) for s in ("train", "val", "test")}
    assert [s for s, data in splits.items() if data.fresh] == ["train"]
    seeds = [open_dataset("shapes", split, seed=seed).seed for seed in range(4) for split in splits]
    assert len(set(seeds)) == 12  # no seed of one split is another split's
    images = [image.numpy().tobytes() for data in splits.values() for image, _ in data]
    assert len(set(images)) == 60


def test_shapes_take_options_and_their_own_classes_only():
    data = open_dataset(
        "shapes", "val", image_size=64, num_images=3, cache_images=True, transforms=fixed_eval(None)
    )
    assert isinstance(data, Shapes) and len(data) == 3 and data[0][0].shape == (3, 64, 64)
    open_dataset("shapes", "val", classes=["circle", "square", "triangle"])
    with pytest.raises(DataError, match=r"the classes are circle, square, triangle.* cat"):
        open_dataset("shapes", "val", classes=["cat"])


@needs_bccd
def test_voc_spec():
    data = open_dataset(f"voc:{BCCD}", "val", classes=["WBC", "RBC", "Platelets"])
    assert isinstance(data, VocDetection) and len(data) == 87
    assert data.class_names == ["WBC", "RBC", "Platelets"]
    with pytest.raises(DataError, match=r"000\d+\.xml: object\[\d+\] .* category 'Platelets'"):
        open_dataset(f"voc:{BCCD}", "val", classes=["WBC", "RBC"])


def test_how_boxes_are_read(voc_folder, coco_files):
    spec = f"voc:{voc_folder}"
    read, moved = (open_dataset(spec, "val", voc_origin=origin).record(0) for origin in (0, 1))
    assert (moved.boxes == (read.boxes - [1, 1, 0, 0]).clip(0)).all()
    for other in (spec, "coco:{}:{}".format(*coco_files)):
        with pytest.raises(ValueError, match="boxes is 'cut', expected one of error, clip"):
            open_dataset(other, "val", boxes="cut")


@needs_tiny_coco
def test_coco_specs():
    root = open_dataset(f"coco:{TINY_COCO}", "val")
    file = TINY_COCO / "annotations" / "instances_val2017.json"
    pair = open_dataset(f"coco:{TINY_COCO / 'val2017'}:{file}", "train")
    assert isinstance(root, CocoDetection) and len(root) == len(pair) == 20
    assert root.describe() == pair.describe()
    with pytest.raises(DataError, match="test2017: no such image folder"):
        open_dataset(f"coco:{TINY_COCO}", "test")


@pytest.mark.parametrize("spec", ["", "shape", "shapes:3", "voc:", "coco:", "yolo:/data", "/data"])
def test_unknown_forms_list_the_known_ones(spec):
    with pytest.raises(DataError) as caught:
        open_dataset(spec, "train")
    assert f"'{spec}'" in str(caught.value)
    assert "shapes | voc:PATH | coco:IMAGES:JSON | coco:ROOT" in str(caught.value)


def test_wrong_paths_and_splits_are_named(tmp_path):
    for spec, words in [
        (f"voc:{tmp_path}/gone", f"{tmp_path}/gone: no such folder"),
        (f"coco:{tmp_path}/gone", f"{tmp_path}/gone: no such folder"),
        (f"coco:{tmp_path}/gone:{tmp_path}/x.json", f"{tmp_path}/gone: no such image folder"),
        (f"coco:{tmp_path}:{tmp_path}/x.json", f"{tmp_path}/x.json: no such annotation file"),
    ]:
        with pytest.raises(DataError) as caught:
            open_dataset(spec, "train")
        assert words in str(caught.value)
    with pytest.raises(DataError, match="unknown split 'trian', expected train, val, test"):
        open_dataset("shapes", "trian")


def target(count):
    return {"boxes": torch.rand(count, 4), "labels": torch.zeros(count, dtype=torch.int64)}


def test_collate_pads_bottom_right_and_masks():
    images = [torch.rand(3, 5, 9) + 1, torch.rand(3, 7, 4) + 1]
    targets = [target(2), target(0)]
    batch, mask, out = collate(list(zip(images, targets, strict=True)))
    assert batch.shape == (2, 3, 7, 9) and batch.dtype == torch.float32
    assert mask.shape == (2, 7, 9) and mask.dtype == torch.bool
    for b, image in enumerate(images):
        h, w = image.shape[1:]
        assert torch.equal(batch[b, :, :h, :w], image)
        assert not mask[b, :h, :w].any()
        assert int(mask[b].sum()) == 7 * 9 - h * w
    assert (batch.permute(0, 2, 3, 1)[mask] == 0).all()
    assert isinstance(out, list) and out[0] is targets[0] and out[1] is targets[1]


def test_collate_rounds_up_to_a_multiple():
    batch, mask, _ = collate([(torch.ones(3, 33, 64), target(1))], pad_to_multiple=32)
    assert batch.shape == (1, 3, 64, 64)
    assert bool(mask[0, 33:].all()) and not bool(mask[0, :33].any())


def test_image_without_objects_through_transforms_and_collate(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    file = tmp_path / "a.json"
    file.write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],'
        ' "annotations": [], "categories": [{"id": 1, "name": "x"}]}'
    )
    data = open_dataset(f"coco:{tmp_path}:{file}", "train", transforms=detr_eval(80))
    assert data.describe().endswith("1 image without objects")
    batch, mask, targets = collate([data[0]])
    assert batch.shape == (1, 3, 80, 120) and mask is None
    assert targets[0]["boxes"].shape == (0, 4) and targets[0]["boxes"].dtype == torch.float32
    assert targets[0]["labels"].shape == (0,) and targets[0]["labels"].dtype == torch.int64
