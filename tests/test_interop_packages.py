"""The drop-in matchers of RF-DETR and ultralytics against the originals, where installed."""

from types import SimpleNamespace

import pytest
import torch
from interop_cases import (
    K,
    assert_not_constant,
    assert_same,
    assert_same_call,
    batch,
    batches,
    import_or_skip,
    in_float,
    shrunk,
)

from detr_fast.interop.matchers import rfdetr, ultralytics

RFDETR_COSTS = {"set_cost_class": 2, "set_cost_bbox": 5, "set_cost_giou": 3, "focal_alpha": 0.4}


@pytest.fixture(scope="module")
def their_rfdetr():
    return import_or_skip("rfdetr.models.matcher")


@pytest.fixture(scope="module")
def their_ultralytics():
    return import_or_skip("ultralytics.models.utils.ops")


def test_rfdetr_same_call(their_rfdetr):
    assert_same_call(rfdetr.HungarianMatcher, their_rfdetr.HungarianMatcher)
    assert_same_call(rfdetr, their_rfdetr, ["build_matcher"])


@pytest.mark.parametrize("groups", [1, 2, 13])
@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_rfdetr_equals_the_original(their_rfdetr, groups, alpha):
    ours = rfdetr.HungarianMatcher(2, 5, 2, focal_alpha=alpha)
    theirs = their_rfdetr.HungarianMatcher(2, 5, 2, focal_alpha=alpha)
    seen = []
    for outputs, targets in batches():
        queries = outputs["pred_logits"].shape[1]
        if queries % groups:
            sizes = [len(target["labels"]) for target in targets]
            outputs, targets = batch(12 * groups, sizes, seed=int(outputs["pred_boxes"].sum()))
        seen.append(ours(outputs, targets, group_detr=groups))
        assert_same(seen[-1], theirs(outputs, targets, group_detr=groups))
    assert_not_constant(seen)


def test_rfdetr_of_boxes_with_hardly_any_area(their_rfdetr):
    ours, theirs = rfdetr.HungarianMatcher(2, 5, 2), their_rfdetr.HungarianMatcher(2, 5, 2)
    for seed in range(10):
        outputs, targets = batch(30, [8, 12], seed=seed)
        outputs["pred_boxes"][:, ::2, 2:] = 0
        targets[0]["boxes"][::2, 2:] = 0
        assert_same(ours(outputs, targets), theirs(outputs, targets))
        for scale in (1e-3, 3e-4, 1e-4):
            given = shrunk(outputs, targets, scale)
            assert_same(ours(*given), theirs(*given))


def test_rfdetr_equals_the_original_in_float32_of_half(their_rfdetr):
    ours, theirs = rfdetr.HungarianMatcher(2, 5, 2), their_rfdetr.HungarianMatcher(2, 5, 2)
    for dtype in (torch.float16, torch.bfloat16):
        for outputs, targets in batches(dtype=dtype):
            assert_same(ours(outputs, targets), theirs(in_float(outputs), targets))


def test_rfdetr_under_autocast(their_rfdetr):
    """The original's costs are in bfloat16 there, and its choice among near-ties another."""
    ours, theirs = rfdetr.HungarianMatcher(2, 5, 2), their_rfdetr.HungarianMatcher(2, 5, 2)
    pairs = different = 0
    for seed in range(20):
        outputs, targets = batch(300, [7, 20, 60, 20], seed=seed, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            expected = theirs(outputs, targets)
            found = ours(outputs, targets)
        assert_same(found, ours(outputs, targets))
        for (i, j), (their_i, their_j) in zip(found, expected, strict=True):
            chosen = set(zip(i.tolist(), j.tolist(), strict=True))
            different += len(chosen - set(zip(their_i.tolist(), their_j.tolist(), strict=True)))
            pairs += len(chosen)
    assert 0 < different < 0.01 * pairs


def test_rfdetr_criterion_gives_the_same_losses(their_rfdetr, monkeypatch):
    lwdetr = import_or_skip("rfdetr.models.lwdetr")
    args = SimpleNamespace(
        **RFDETR_COSTS,
        segmentation_head=False,
        device="cpu",
        cls_loss_coef=1,
        bbox_loss_coef=5,
        giou_loss_coef=2,
        aux_loss=True,
        dec_layers=2,
        two_stage=False,
        num_classes=K - 1,
        group_detr=3,
        sum_group_losses=False,
        use_varifocal_loss=False,
        use_position_supervised_loss=False,
        ia_bce_loss=True,
        num_select=30,
    )
    theirs, _ = lwdetr.build_criterion_and_postprocessors(args)
    monkeypatch.setattr(lwdetr, "build_matcher", rfdetr.build_matcher)
    ours, _ = lwdetr.build_criterion_and_postprocessors(args)
    assert type(ours.matcher) is rfdetr.HungarianMatcher is not type(theirs.matcher)
    for seed in range(5):
        outputs, targets = batch(60, [4, 0, 12], seed=seed)
        outputs["aux_outputs"] = [batch(60, [4, 0, 12], seed=seed + 50)[0]]
        expected = theirs.train()(outputs, targets)
        assert len(expected) > 6
        torch.testing.assert_close(ours.train()(outputs, targets), expected)


@pytest.mark.filterwarnings("ignore:some predictions have no finite")
def test_rfdetr_pairs_without_a_cost_come_last(their_rfdetr):
    ours, theirs = rfdetr.HungarianMatcher(2, 5, 2), their_rfdetr.HungarianMatcher(2, 5, 2)
    for seed in range(10):
        outputs, targets = batch(30, [4, 0, 9], seed=seed)
        outputs["pred_logits"][0, ::5] = torch.nan
        outputs["pred_logits"][2, 2, 3] = torch.nan
        outputs["pred_boxes"][2, 3] = torch.nan
        outputs["pred_boxes"][2, 4, 1] = torch.inf
        for groups in (1, 2):
            found = ours(outputs, targets, group_detr=groups)
            assert_same(found, theirs(outputs, targets, group_detr=groups))
        assert all(n % 5 for n in found[0][0].tolist())
        assert not {3, 4} & set(found[2][0].tolist())


def test_rfdetr_warns_once():
    outputs, targets = batch(30, [4])
    outputs["pred_boxes"][0, 3] = torch.nan
    matcher = rfdetr.HungarianMatcher()
    with pytest.warns(UserWarning, match="^some predictions have no finite matching cost") as seen:
        matcher(outputs, targets)
        matcher(outputs, targets)
    assert len(seen) == 1


def test_rfdetr_refuses_what_it_has_no_cost_for():
    outputs, targets = batch(30, [4, 2])
    matcher = rfdetr.HungarianMatcher()
    for key in ("masks", "valid"):
        spoilt = [targets[0], {**targets[1], key: torch.zeros(2)}]
        with pytest.raises(ValueError, match=rf"^targets\[1\] has '{key}', for which this mat"):
            matcher(outputs, spoilt)
    points = [{**target, "keypoints": torch.zeros(1)} for target in targets]
    assert_same(matcher(outputs, points), matcher(outputs, targets))  # as there: not predicted
    with pytest.raises(ValueError, match=r"^targets\[0\] has 'keypoints'"):
        matcher({**outputs, "pred_keypoints": torch.zeros(1)}, points)
    with pytest.raises(ValueError, match=r"^num_queries \(30\) must be divisible by .* \(4\)$"):
        matcher(outputs, targets, group_detr=4)
    with pytest.raises(ValueError, match=r"^all costs can't be 0"):
        rfdetr.HungarianMatcher(0, 0, 0)
    targets[1]["labels"][1] = K
    with pytest.raises(ValueError, match=r"^targets\[1\]\['labels'\]\[1\] is 9, but logits have 9"):
        matcher(outputs, targets, group_detr=3)


def test_rfdetr_build_matcher():
    args = SimpleNamespace(**RFDETR_COSTS, segmentation_head=False)
    matcher = rfdetr.build_matcher(args)
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (2, 5, 3)
    assert matcher.focal_alpha == 0.4
    args.segmentation_head = True
    with pytest.raises(ValueError, match=r"^args.segmentation_head is true, but "):
        rfdetr.build_matcher(args)


def as_ultralytics(outputs, targets):
    return (
        outputs["pred_boxes"],
        outputs["pred_logits"],
        torch.cat([target["boxes"] for target in targets]),
        torch.cat([target["labels"] for target in targets]),
        [len(target["labels"]) for target in targets],
    )


def test_ultralytics_same_call(their_ultralytics):
    assert_same_call(ultralytics.HungarianMatcher, their_ultralytics.HungarianMatcher)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cost_gain": {"class": 2, "bbox": 5, "giou": 2}},
        {"alpha": 0.6, "gamma": 1.5},
        {"use_fl": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_ultralytics_equals_the_original(their_ultralytics, options, dtype):
    ours = ultralytics.HungarianMatcher(**options)
    theirs = their_ultralytics.HungarianMatcher(**options)
    seen, offset = [], 0
    for given in batches(dtype=dtype):
        seen.append(ours(*as_ultralytics(*given)))
        assert_same(seen[-1], theirs(*as_ultralytics(*given)))
        offset += seen[-1][-1][1].numel() > 0 and seen[-1][-1][1].min() > 0
    assert offset > 20  # targets are counted through all images
    assert_not_constant(seen)


def test_ultralytics_loss_is_the_same(their_ultralytics, monkeypatch):
    loss = import_or_skip("ultralytics.models.utils.loss")
    theirs = loss.RTDETRDetectionLoss(nc=K, use_vfl=True)
    monkeypatch.setattr(loss, "HungarianMatcher", ultralytics.HungarianMatcher)
    ours = loss.RTDETRDetectionLoss(nc=K, use_vfl=True)
    assert type(ours.matcher) is ultralytics.HungarianMatcher is not type(theirs.matcher)
    for seed in range(5):
        outputs, targets = batch(60, [4, 0, 12], seed=seed)
        earlier, _ = batch(60, [4, 0, 12], seed=seed + 50)
        layers = [
            torch.stack([earlier[key], outputs[key]]) for key in ("pred_boxes", "pred_logits")
        ]
        _, _, boxes, labels, groups = as_ultralytics(outputs, targets)
        given = {"cls": labels, "bboxes": boxes, "gt_groups": groups}
        expected = theirs(layers, given)
        assert len(expected) > 5
        torch.testing.assert_close(ours(layers, given), expected)


def test_ultralytics_of_boxes_with_hardly_any_area(their_ultralytics):
    ours, theirs = ultralytics.HungarianMatcher(), their_ultralytics.HungarianMatcher()
    for seed in range(10):
        for scale in (1e-3, 3e-4, 1e-4):
            given = as_ultralytics(*shrunk(*batch(30, [8, 12], seed=seed), scale))
            assert_same(ours(*given), theirs(*given))


@pytest.mark.parametrize("use_fl", [True, False])
def test_ultralytics_costs_of_nothing_finite_are_zero(their_ultralytics, use_fl):
    ours = ultralytics.HungarianMatcher(use_fl=use_fl)
    theirs = their_ultralytics.HungarianMatcher(use_fl=use_fl)
    chosen = 0
    for seed in range(10):
        outputs, targets = batch(30, [4, 0, 12], seed=seed)
        # One such query an image: of several, which is matched is not determined.
        outputs["pred_logits"][0, 5] = torch.nan
        outputs["pred_boxes"][2, 3] = torch.nan
        # Perfect boxes, and the right class held for unlikely: a cost of little more than 0.
        outputs["pred_boxes"][2, 8:20] = targets[2]["boxes"]
        if use_fl:
            outputs["pred_logits"][2, 8:20] = -1
        found = ours(*as_ultralytics(outputs, targets))
        expected = theirs(*as_ultralytics(outputs, targets))
        assert_same(found, expected)
        chosen += (5 in found[0][0].tolist()) + (3 in found[2][0].tolist())
    assert chosen > (15 if use_fl else 5)  # 0 is a good cost


def test_ultralytics_errors_are_in_its_names():
    matcher = ultralytics.HungarianMatcher()
    boxes, scores, gt_boxes, gt_cls, groups = as_ultralytics(*batch(20, [5, 6]))
    gt_cls[5 + 3] = K
    with pytest.raises(ValueError, match=r"^gt_cls\[8\] is 9, but logits have 9 classes"):
        matcher(boxes, scores, gt_boxes, gt_cls, groups)
    gt_cls[5 + 3] = 0
    gt_boxes[5 + 2, 3] = torch.inf
    with pytest.raises(ValueError, match=r"^gt_bboxes\[7\] is \[.*inf\], but "):
        matcher(boxes, scores, gt_boxes, gt_cls, groups)
    gt_boxes[5 + 2, 3] = 0.5
    boxes[1, 7, 2] = -1
    with pytest.raises(ValueError, match=r"^pred_bboxes\[1, 7\] is \[.*-1.*\], but "):
        matcher(boxes, scores, gt_boxes, gt_cls, groups)
    with pytest.raises(ValueError, match=r"^gt_groups \[5, 5\] sum up to 10, but there are 11 "):
        matcher(boxes, scores, gt_boxes, gt_cls, [5, 5])
    with pytest.raises(ValueError, match=r"^predictions for 2 images, but 1 targets$"):
        matcher(boxes, scores, gt_boxes, gt_cls, [11])
    with pytest.raises(ValueError, match=r"^all costs can't be 0"):
        ultralytics.HungarianMatcher({"class": 0, "bbox": 0, "giou": 0})
    with pytest.raises(KeyError, match="giou"):
        ultralytics.HungarianMatcher({"class": 1, "bbox": 1})
