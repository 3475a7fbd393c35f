"""Generated shapes: reproducible, separate, tightly boxed, and fresh each epoch if asked."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.ops import box_iou

from detr_fast.data import DataError, Shapes
from detr_fast.data.shapes import _coverage, _draw


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1]["boxes"], b[1]["boxes"])


def test_form_of_images_and_targets():
    data = Shapes(num_images=60, image_size=96, seed=4)
    assert len(data) == 60
    assert data.class_names == ["circle", "square", "triangle"]
    assert data.record(0).path is None
    seen = []
    for index, (image, target) in enumerate(data):
        assert image.shape == (3, 96, 96) and image.dtype == torch.uint8
        count = len(target["labels"])
        assert 1 <= count <= 5 and target["boxes"].shape == (count, 4)
        assert int(target["image_id"]) == index
        assert target["orig_size"].tolist() == [96, 96]
        assert float(target["boxes"].min()) >= 0 and float(target["boxes"].max()) <= 96
        seen += target["labels"].tolist()
    assert set(seen) == {0, 1, 2}
    with pytest.raises(IndexError):
        data[60]


def test_image_depends_on_seed_and_index_only():
    data, again = Shapes(10, seed=7), Shapes(500, seed=7)
    backwards = [again[i] for i in reversed(range(10))][::-1]
    assert all(same(data[i], backwards[i]) for i in range(10))
    assert not any(same(data[i], Shapes(10, seed=8)[i]) for i in range(10))
    assert not same(data[0], data[1])
    before = data[3]
    data.set_epoch(5)  # without fresh, epochs change nothing
    assert same(data[3], before)


def test_fresh_images_each_epoch_the_same_when_repeated():
    data = Shapes(10, seed=1, fresh=True)
    epochs = []
    for epoch in range(3):
        data.set_epoch(epoch)
        epochs.append([data[i] for i in range(10)])
    for a in range(3):
        for b in range(a):
            assert not any(same(x, y) for x, y in zip(epochs[a], epochs[b], strict=True))
    resumed = Shapes(10, seed=1, fresh=True)
    resumed.set_epoch(2)
    assert all(same(resumed[i], epochs[2][i]) for i in range(10))
    assert not same(Shapes(10, seed=1)[0], epochs[0][0])


def test_epoch_reaches_workers_that_live_on():
    data = Shapes(4, image_size=32, fresh=True)
    loader = DataLoader(
        data, batch_size=None, num_workers=2, persistent_workers=True, prefetch_factor=2
    )
    for epoch in (0, 1, 7):
        data.set_epoch(epoch)
        worked = list(loader)
        assert all(same(worked[i], data[i]) for i in range(4))


def test_ground_truth_follows_the_epoch():
    pytest.importorskip("pycocotools")
    data = Shapes(3, fresh=True)
    first = [a["bbox"] for a in data.coco.dataset["annotations"]]
    assert data.coco is data.coco
    data.set_epoch(1)
    assert [a["bbox"] for a in data.coco.dataset["annotations"]] != first
    truth = data.coco.loadAnns(data.coco.getAnnIds(imgIds=2))
    boxes = data[2][1]["boxes"].tolist()
    assert [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in truth)] == boxes


def test_counts_follow_the_epoch():
    data = Shapes(20, fresh=True)
    for epoch in (0, 3):
        data.set_epoch(epoch)
        assert data.objects_per_image.tolist() == [len(t["labels"]) for _, t in data]


def test_shapes_do_not_touch():
    data = Shapes(200, seed=2)
    for _, target in data:
        overlap = box_iou(target["boxes"], target["boxes"])
        assert float((overlap - torch.eye(len(overlap))).abs().max()) == 0


@pytest.mark.parametrize("size", [96, 200])
def test_boxes_are_tight_around_the_painted_pixels(size, monkeypatch):
    """Paint without background and grain: what is left is the shapes alone."""
    import detr_fast.data.shapes as module

    def black(rng, size):
        return np.zeros((3, size, size), dtype=np.float32), np.zeros(3)

    monkeypatch.setattr(module, "_background", black)
    monkeypatch.setattr(module, "_grain_strength", lambda u: 0.0)
    for index in range(40):
        pixels, boxes, _ = _draw(np.random.default_rng(index), size)
        bright = pixels.max(0).astype(int)
        outside = np.ones((size, size), dtype=bool)
        for x0, y0, x1, y1 in boxes.astype(int):
            outside[y0:y1, x0:x1] = False
            inside = bright[y0:y1, x0:x1]
            solid = inside >= inside.max() // 2  # the shape has one colour; its rim fades
            assert solid[0].any() and solid[-1].any()
            assert solid[:, 0].any() and solid[:, -1].any()
            # Just around the box there are only pixels that the shape covers less than half:
            # a rim of one, and two where a sharp corner ends.
            top, left = max(0, y0 - 2), max(0, x0 - 2)
            rim = bright[top : y1 + 2, left : x1 + 2].copy()
            rim[y0 - top : y1 - top, x0 - left : x1 - left] = 0
            assert rim.max() <= inside.max() / 2 + 1
            outside[top : y1 + 2, left : x1 + 2] = False
        assert (bright[outside] == 0).all()


@pytest.mark.parametrize("label, share", [(0, np.pi / 4), (1, 1.0), (2, 0.5)])
def test_each_kind_has_its_shape(label, share):
    """The part of its box that a shape fills tells circle, square and triangle apart."""
    inside = _coverage(label, 60.0, 0.0) >= 0.5
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    assert inside.sum() / area == pytest.approx(share, abs=0.02)
    if label == 2:  # it stands on its base
        assert inside[rows[0]].sum() < 5 and inside[rows[-1]].sum() > 50


def test_sides_are_as_documented_and_grow_with_the_image():
    for size in (96, 192):
        boxes = np.concatenate([Shapes(150, size).record(i).boxes for i in range(150)])
        longest = (boxes[:, 2:] - boxes[:, :2]).max(1) * 96 / size
        assert 12 <= longest.min() < 17 and 37 < longest.max() <= 41
    for number in (1, 5):
        counts = [len(Shapes(150).record(i).labels) for i in range(150)]
        assert counts.count(number) > 5


def test_shapes_stand_out_from_the_background():
    for index in range(30):
        image, target = Shapes(30, seed=9)[index]
        pixels = image.float()
        around = torch.ones(96, 96, dtype=torch.bool)
        for x0, y0, x1, y1 in target["boxes"].int().tolist():
            around[y0:y1, x0:x1] = False
        ground = pixels[:, around].mean(1)
        for x0, y0, x1, y1 in target["boxes"].int().tolist():
            cx, cy = (x0 + x1) // 2, (y0 + y1) // 2 + (y1 - y0) // 8
            middle = pixels[:, cy - 1 : cy + 2, cx - 1 : cx + 2].mean((1, 2))
            assert float((middle - ground).norm()) > 40


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"image_size": 31}, {"seed": -1}])
def test_impossible_arguments(wrong):
    with pytest.raises(DataError, match="num_images >= 1"):
        Shapes(**wrong)


def test_shapes_from_the_end():
    data = Shapes(3, image_size=48)
    assert torch.equal(data[-1][0], data[2][0])
