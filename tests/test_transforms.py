"""Recipes: boxes stay on their objects (checked on pixels), forms, published sizes, colours."""

import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from detr_fast.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    augment,
    denormalize,
    detr_eval,
    detr_train,
    fixed_eval,
    small_train,
)

RECIPES = {
    "detr_train": detr_train,
    "detr_eval": detr_eval,
    "detr_eval_small": lambda: detr_eval(120, 150),
    "small_train": lambda: small_train(160, vertical=True),
    "small_train_keep": lambda: small_train(None),
    "small_train_wide": lambda: small_train((96, 200), zoom=(0.5, 2.0), stretch=0.3),
    "fixed_eval": lambda: fixed_eval((100, 170)),
    "fixed_eval_keep": lambda: fixed_eval(None),
}
PLAIN = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}  # colours as they are
every_recipe = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(autouse=True)
def one_thread():
    """Small images: handing them to threads takes longer than the work, above all when busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def target_for(image, boxes, labels):
    size = tuple(image.shape[-2:])
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "image_id": torch.tensor(17),
        "orig_size": torch.tensor(size),
    }


def two_rectangles():
    """A red one, label 0, and a green one, label 1, on grey, 200 x 260."""
    image = torch.full((3, 200, 260), 60, dtype=torch.uint8)
    boxes = [[30, 20, 110, 90], [150, 100, 230, 185]]
    for channel, (x0, y0, x1, y1) in enumerate(boxes):
        image[:, y0:y1, x0:x1] = 20
        image[channel, y0:y1, x0:x1] = 230
    return tv_tensors.Image(image), target_for(image, boxes, [0, 1])


def pixel_boxes(target):
    height, width = target["size"].tolist()
    return box_convert(target["boxes"], "cxcywh", "xyxy") * torch.tensor(
        [width, height, width, height]
    )


def coloured_area(image, channel):
    """xyxy of all pixels in which ``channel`` clearly leads, or None."""
    shown = denormalize(image)
    others = shown[[c for c in range(3) if c != channel]].max(0).values
    lead = shown[channel] - others
    if float(lead.max()) < 0.2:
        return None
    rows, columns = torch.nonzero(lead > 0.5 * lead.max(), as_tuple=True)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return torch.tensor([float(e) for e in edges])


@every_recipe
def test_objects_stay_under_their_boxes(name):
    recipe = RECIPES[name]()
    image, target = two_rectangles()
    checked = 0
    for seed in range(4 if name.startswith("detr_") else 20):
        torch.manual_seed(seed)
        out, found = recipe(image, target)
        boxes = dict(zip(found["labels"].tolist(), pixel_boxes(found), strict=True))
        for channel, box in boxes.items():
            seen = coloured_area(out, channel)
            if seen is None and float((box[2:] - box[:2]).min()) < 2:
                continue  # a sliver of less than two pixels may not show
            # Interpolation puts an edge up to half a pixel off, twice where sizes are rounded.
            torch.testing.assert_close(seen, box, atol=max(1.5, out.shape[-1] / 260), rtol=0)
            checked += 1
    assert checked >= 4


@every_recipe
def test_form_of_the_result(name):
    torch.manual_seed(0)
    image, target = two_rectangles()
    before = image.clone(), {key: value.clone() for key, value in target.items()}
    out, found = RECIPES[name]()(image, target)
    assert type(out) is Tensor and out.dtype == torch.float32 and out.shape[0] == 3
    assert type(found["boxes"]) is Tensor and found["boxes"].dtype == torch.float32
    assert found["size"].tolist() == list(out.shape[-2:])
    assert found["orig_size"].tolist() == [200, 260] and int(found["image_id"]) == 17
    assert len(found["labels"]) == len(found["boxes"])
    corners = box_convert(found["boxes"], "cxcywh", "xyxy")
    assert float(corners.min()) >= -1e-6 and float(corners.max()) <= 1 + 1e-6
    # Nothing was changed in place.
    assert torch.equal(image, before[0])
    assert target.keys() == before[1].keys()
    assert all(torch.equal(target[key], before[1][key]) for key in target)


@every_recipe
def test_no_objects_and_no_target(name):
    recipe = RECIPES[name]()
    image, _ = two_rectangles()
    for seed in range(3):
        torch.manual_seed(seed)
        out, found = recipe(image, target_for(image, [], []))
        assert found["boxes"].shape == (0, 4) and found["labels"].shape == (0,)
        assert found["labels"].dtype == torch.int64
        torch.manual_seed(seed)
        alone, none = recipe(image)  # the same picture, for prediction
        assert none is None and torch.equal(out, alone)


@every_recipe
def test_repeats_with_the_seed(name):
    recipe = RECIPES[name]()
    image, target = two_rectangles()
    outs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outs.append(recipe(image, target))
    assert torch.equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1]["boxes"], outs[1][1]["boxes"])
    same = outs[0][0].shape == outs[2][0].shape and torch.equal(outs[0][0], outs[2][0])
    assert same == ("eval" in name)


def test_normalisation_and_its_inverse():
    image = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8)
    out, _ = fixed_eval(None)(image)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    expected = (image.float() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(denormalize(out), image.float() / 255)
    torch.testing.assert_close(denormalize(torch.stack([out, out]))[1], image.float() / 255)


@pytest.mark.parametrize(
    "size, expected",
    [
        ((480, 640), (800, 1066)),
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),
        ((500, 500), (800, 800)),
        ((800, 1200), (800, 1200)),
        ((300, 900), (444, 1332)),  # the cap: 1333 * 300 / 900 = 444.3, then 444 * 3
        ((640, 229), (1333, 477)),  # 1333 * 229 / 640 = 476.96, rounded, then 477 * 640 / 229
        ((1741, 403), (1334, 309)),  # 1333 * 403 / 1741 = 308.56, rounded, then 309 * 1741 / 403
    ],
)
def test_detr_eval_sizes_are_the_published_ones(size, expected):
    step = detr_eval().steps[0]
    assert step.new_size(*size, 800) == expected


def published_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """The published rule, in exact fractions."""
    low, high = sorted((height, width))
    if Fraction(high, low) * short > longest:
        short = round(Fraction(longest * low, high))
    if high == width:
        return short, int(Fraction(short * width, height))
    return int(Fraction(short * height, width)), short


def test_random_sizes_are_the_published_ones():
    dice = random.Random(0)
    step = detr_train().steps[0].chains[0][0]
    beyond = 0
    for _ in range(20_000):
        size = dice.randint(1, 3000), dice.randint(1, 3000)
        short = dice.choice(step.sizes)
        found = step.new_size(*size, short)
        if min(size) * 2 * 1333 > max(size):  # thinner ones it brings to no pixel at all
            assert found == published_size(*size, short, 1333), (size, short)
            beyond += max(found) > 1333
    assert beyond > 500


@pytest.mark.parametrize("size, expected", [((2, 5333), (1, 2666)), ((9000, 3), (2666, 1))])
def test_very_thin_images_keep_a_pixel(size, expected):
    image = tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8))
    assert detr_eval()(image)[0].shape[1:] == expected


def test_detr_train_sizes_and_crops():
    recipe = detr_train()
    image = tv_tensors.Image(torch.zeros(3, 60, 80, dtype=torch.uint8))
    image[:, :, 40:] = 200
    ratios, shorts = [], set()
    for seed in range(40):
        torch.manual_seed(seed)
        out, _ = recipe(image, target_for(image, [], []))
        assert max(out.shape) <= 1333
        shorts.add(min(out.shape[1:]))
        ratios.append(round(out.shape[2] / out.shape[1], 2))
    uncropped = sum(r in (1.33, 1.34) for r in ratios)
    assert 10 < uncropped < 32  # about half
    assert len(shorts & set(range(480, 801, 32))) > 5


def test_random_size_crop_removes_what_is_outside_with_its_label():
    image, target = two_rectangles()
    crop, sanitize = augment.RandomSizeCrop(60, 90), augment.Sanitize()
    counts = set()
    for seed in range(60):
        torch.manual_seed(seed)
        out, found = sanitize(*crop(image, target))
        assert 60 <= out.shape[1] <= 90 and 60 <= out.shape[2] <= 90
        for box, label in zip(found["boxes"].int().tolist(), found["labels"], strict=True):
            x0, y0, x1, y1 = box
            assert (out[int(label), y0:y1, x0:x1] == 230).all()
        assert int((out == 230).sum()) == int(
            ((found["boxes"][:, 2:] - found["boxes"][:, :2]).prod(1)).sum()
        )
        counts.add(len(found["labels"]))
    assert counts >= {0, 1}


def test_flips_are_fair_and_vertical_only_on_request():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, 0, 0] = 255
    still = {"zoom": (1, 1), "stretch": 0, **PLAIN}
    for options, corners in [
        ({}, {(0, 0), (0, 7)}),
        ({"vertical": True}, {(0, 0), (0, 7), (7, 0), (7, 7)}),
        ({"flip": False}, {(0, 0)}),
    ]:
        recipe = small_train(None, **still, **options)
        torch.manual_seed(0)
        seen = [divmod(int(recipe(image)[0][0].argmax()), 8) for _ in range(200)]
        assert set(seen) == corners
        assert min(seen.count(c) for c in corners) > 120 / len(corners)


def test_small_train_at_rest_is_fixed_eval():
    image, target = two_rectangles()
    recipe = small_train((64, 96), flip=False, zoom=(1, 1), stretch=0, **PLAIN)
    out, found = recipe(image, target)
    expected, expected_found = fixed_eval((64, 96))(image, target)
    assert torch.equal(out, expected)
    torch.testing.assert_close(found["boxes"], expected_found["boxes"])


def test_zoom_covers_its_range_and_fills_with_the_mean_colour():
    image = torch.full((3, 80, 80), 255, dtype=torch.uint8)
    target = target_for(image, [[0, 0, 80, 80]], [0])
    recipe = small_train(80, zoom=(0.5, 1.0), stretch=0, **PLAIN)
    sides, places = [], []
    for seed in range(60):
        torch.manual_seed(seed)
        out, found = recipe(image, target)
        x0, y0, x1, y1 = pixel_boxes(found)[0].round().int().tolist()
        white = denormalize(out).min(0).values > 0.99
        assert int(white.sum()) == int(white[y0:y1, x0:x1].sum()) == (x1 - x0) * (y1 - y0)
        assert out[:, ~white].numel() == 0 or float(out[:, ~white].abs().max()) < 0.02
        sides.append(x1 - x0)
        places.append(x0)
    assert 39 <= min(sides) < 45 and 75 < max(sides) <= 80
    assert min(places) == 0 and max(places) > 20  # anywhere on the ground


def test_min_visible_decides_which_cut_boxes_stay():
    image, target = two_rectangles()
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    whole = sides.prod(1) * (2.5 * 120 / 200) * (2.5 * 120 / 260)  # areas at this zoom, uncut
    for min_visible in (0.05, 0.3, 0.6):
        recipe = small_train(120, zoom=(2.5, 2.5), stretch=0, min_visible=min_visible, **PLAIN)
        outcomes = []
        for seed in range(60):
            torch.manual_seed(seed)
            out, found = recipe(image, target)
            shown = denormalize(out)
            for label in (0, 1):
                left = float((shown[label] > shown[2] + 0.4).sum() / whole[label])
                if abs(left - min_visible) > 0.04:  # pixels cannot decide what is closer
                    outcomes.append(left > min_visible)
                    assert (label in found["labels"].tolist()) == outcomes[-1]
        assert min(outcomes.count(True), outcomes.count(False)) > 3


@pytest.mark.parametrize("part", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("high", [False, True])
def test_colour_jitter_agrees_with_torchvision(monkeypatch, part, high):
    """Each factor alone, at the end of its range, against torchvision's function."""
    torch.manual_seed(0)
    image = torch.rand(3, 20, 30) * 0.6 + 0.2  # stays in 0..1, which both clamp to
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, part: 0.25}
    monkeypatch.setattr(augment, "_uniform", lambda lo, hi: hi if high else lo)
    out, _ = augment.ColorJitter(**strengths, hue=0.0)(tv_tensors.Image(image), None)
    adjust = getattr(F, f"adjust_{part}")
    expected = adjust(image, 1.25 if high else 0.75)
    # Luma weights: torchvision rounds them to 0.2989, 0.587, 0.114.
    torch.testing.assert_close(out.as_subclass(Tensor), expected, atol=2e-4, rtol=0)


def test_hue_turns_colours_and_leaves_greys(monkeypatch):
    monkeypatch.setattr(augment, "_uniform", lambda low, high: high)
    jitter = augment.ColorJitter(0, 0, 0, 1 / 3)  # a third of a turn
    grey = tv_tensors.Image(torch.full((3, 4, 4), 0.4))
    torch.testing.assert_close(
        jitter(grey, None)[0].as_subclass(Tensor), torch.full((3, 4, 4), 0.4)
    )
    red = torch.tensor([0.6, 0.4, 0.4])[:, None, None].expand(3, 4, 4)
    turned = jitter(tv_tensors.Image(red), None)[0]
    assert int(turned[:, 0, 0].argmax()) == 1  # red becomes green
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert float(luma @ turned[:, 0, 0]) == pytest.approx(float(luma @ red[:, 0, 0]), abs=1e-5)


@pytest.mark.parametrize("size", [0, (3,), (10, -1), (1, 2, 3)])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match="size must be"):
        fixed_eval(size)
    with pytest.raises(ValueError, match="size must be"):
        small_train(size)


def test_impossible_zoom():
    with pytest.raises(ValueError, match="zoom"):
        small_train(64, zoom=(0, 1))
    with pytest.raises(ValueError, match="zoom"):
        small_train(64, zoom=(2, 1))


def test_recipes_are_built_as_they_say():
    resize = (
        "ResizeShortSide((480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), longest=1333)"
    )
    crop = f"[ResizeShortSide((400, 500, 600), longest=None), RandomSizeCrop(384, 600), {resize}]"
    assert f"OneOf([{resize}], {crop})" in repr(detr_train())
    options = {"brightness": 0.1, "contrast": 0.2, "saturation": 0.3, "hue": 0.04}
    assert "ColorJitter(0.1, 0.2, 0.3, 0.04)" in repr(small_train(None, **options))
    assert "ResizeShortSide((800,), longest=1333)" in repr(detr_eval())
    assert detr_train().useful_size(2000, 3000) == (800, 1200)


def test_detr_train_flips_half():
    image = tv_tensors.Image(torch.zeros(3, 60, 80, dtype=torch.uint8))
    image[:, :, 40:] = 200
    flipped = 0
    for seed in range(20):
        torch.manual_seed(seed)
        out, _ = detr_train()(image)
        flipped += bool(out[..., 0].mean() > out[..., -1].mean())
    assert 3 < flipped < 17


def test_detr_train_leaves_no_box_without_area():
    image = tv_tensors.Image(torch.zeros(3, 60, 80, dtype=torch.uint8))
    corners = [[x, y, x + 2, y + 2] for x in (0, 78) for y in (0, 58)]
    counts = set()
    for seed in range(12):
        torch.manual_seed(seed)
        _, found = detr_train()(image, target_for(image, corners, [0, 1, 2, 3]))
        assert (found["boxes"][:, 2:] > 0).all()
        assert len(found["labels"]) == len(found["boxes"])
        counts.add(len(found["boxes"]))
    assert 4 in counts and len(counts) > 1  # whole, or cropped


def test_zoom_is_log_uniform_and_stretch_by_up_to_its_fraction(monkeypatch):
    image = torch.full((3, 80, 80), 255, dtype=torch.uint8)
    target = target_for(image, [[0, 0, 80, 80]], [0])
    recipe = small_train(80, flip=False, zoom=(0.25, 1.0), stretch=0.5, **PLAIN)
    for share, ratio in ((0.5, 1.0), (0.75, 1.5**0.5)):
        monkeypatch.setattr(augment, "_uniform", lambda low, high, s=share: low + s * (high - low))
        x0, y0, x1, y1 = pixel_boxes(recipe(image, target)[1])[0].tolist()
        assert (x1 - x0) / (y1 - y0) == pytest.approx(ratio, abs=0.05)
        assert ((x1 - x0) * (y1 - y0)) ** 0.5 == pytest.approx(80 * 0.25 * 4**share, abs=1)


def test_a_third_of_the_hue_turns_red_to_green(monkeypatch):
    monkeypatch.setattr(augment, "_uniform", lambda low, high: high)
    red = torch.tensor([0.6, 0.4, 0.4])[:, None, None].expand(3, 4, 4)
    turned, _ = augment.ColorJitter(0, 0, 0, 1 / 3)(tv_tensors.Image(red), None)
    assert turned[1, 0, 0] - turned[[0, 2], 0, 0].max() > 0.1


def test_colours_stay_in_their_range(monkeypatch):
    monkeypatch.setattr(augment, "_uniform", lambda low, high: high)
    image = tv_tensors.Image(torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 4, 4))
    out, _ = augment.ColorJitter(0.2, 0.2, 0.2, 0.02)(image, None)
    assert out.min() >= 0 and out.max() <= 1
