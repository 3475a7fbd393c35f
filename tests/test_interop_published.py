"""The drop-in matchers whose originals are no packages, against their formulas with SciPy."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from interop_cases import (
    K,
    assert_not_constant,
    assert_same,
    batch,
    batches,
    costs,
    focal,
    in_float,
    shrunk,
    solved,
)

from detr_fast import PredictionError
from detr_fast.interop.matchers import deformable_detr, detr, dfine, dino, rtdetr

WEIGHTS = {"cost_class": 2, "cost_bbox": 5, "cost_giou": 2}
SET_COSTS = SimpleNamespace(set_cost_class=2, set_cost_bbox=5, set_cost_giou=2, focal_alpha=0.4)


def alpha_40(logits):
    return focal(logits, alpha=0.4)


def unusual(logits):
    return focal(logits, alpha=0.6, gamma=1.5)


# A matcher, the logits it takes, and the formula's class cost and GIoU epsilon.
MATCHERS = {
    "detr": (detr.HungarianMatcher(2, 5, 2), K + 1, None, 0.0),
    "deformable_detr": (deformable_detr.HungarianMatcher(2, 5, 2), K, focal, 0.0),
    "dino": (dino.HungarianMatcher(2, 5, 2), K, focal, 1e-6),
    "dino alpha": (dino.HungarianMatcher(2, 5, 2, focal_alpha=0.4), K, alpha_40, 1e-6),
    "rtdetr": (rtdetr.HungarianMatcher(WEIGHTS, use_focal_loss=True), K, focal, 0.0),
    "rtdetr softmax": (rtdetr.HungarianMatcher(WEIGHTS), K, None, 0.0),
    "rtdetr unusual": (rtdetr.HungarianMatcher(WEIGHTS, True, 0.6, 1.5), K, unusual, 0.0),
    "dfine": (dfine.HungarianMatcher(WEIGHTS, use_focal_loss=True), K, focal, 0.0),
    "dfine softmax": (dfine.HungarianMatcher(WEIGHTS), K, None, 0.0),
}


def pairs_of(matcher, outputs, targets):
    result = matcher(outputs, targets)
    if isinstance(matcher, rtdetr.HungarianMatcher):
        assert list(result) == ["indices"]
        result = result["indices"]
    assert isinstance(result, list)
    return result


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_formula(name, dtype):
    matcher, classes, class_cost, eps = MATCHERS[name]
    seen = []
    for outputs, targets in batches(classes=classes, dtype=dtype):
        expected = solved(costs(in_float(outputs), targets, (2, 5, 2), class_cost, eps))
        seen.append(pairs_of(matcher, outputs, targets))
        assert_same(seen[-1], expected)
    assert_not_constant(seen)


def test_confident_queries_are_told_apart():
    """Logits of 20 and more: the formula's p is 1 in float32, and all of them cost the same."""
    matcher = deformable_detr.HungarianMatcher(2, 5, 2)
    exact = as_in_float32 = 0
    for seed in range(20):
        outputs, targets = batch(100, [20, 40], scale=8.0, seed=seed)
        found = matcher(outputs, targets)
        wide = {key: outputs[key].double() for key in ("pred_logits", "pred_boxes")}
        wide_targets = [{**target, "boxes": target["boxes"].double()} for target in targets]
        assert_same(found, solved(costs(wide, wide_targets, (2, 5, 2), focal)))
        for (i, j), (other_i, other_j) in zip(
            found, solved(costs(outputs, targets, (2, 5, 2), focal)), strict=True
        ):
            exact += len(i)
            chosen = set(zip(i.tolist(), j.tolist(), strict=True))
            as_in_float32 += len(chosen & set(zip(other_i.tolist(), other_j.tolist(), strict=True)))
    assert as_in_float32 < 0.99 * exact


def test_defaults_are_the_originals():
    """Weights of 1, not FastMatcher's."""
    for module, classes in ((detr, K + 1), (deformable_detr, K), (dino, K)):
        class_cost = None if module is detr else focal
        eps = 1e-6 if module is dino else 0.0
        for outputs, targets in batches(classes=classes):
            expected = solved(costs(outputs, targets, (1, 1, 1), class_cost, eps))
            assert_same(module.HungarianMatcher()(outputs, targets), expected)


def cheapest(blocks):
    return [(cost.argmin(0), torch.arange(cost.shape[1])) for cost in blocks]


@pytest.mark.parametrize(
    ("kind", "solve"),
    [(dino.HungarianMatcher, solved), (dino.SimpleMinsumMatcher, cheapest)],
    ids=["Hungarian", "Minsum"],
)
def test_dino_guards_giou(kind, solve):
    differ = 0
    for seed in range(10):
        outputs, targets = shrunk(*batch(30, [8, 12], seed=seed), scale=2e-3)
        guarded, unguarded = (
            solve(costs(outputs, targets, (2, 5, 2), focal, eps)) for eps in (1e-6, 0.0)
        )
        assert_same(kind(2, 5, 2)(outputs, targets), guarded)
        differ += [i.tolist() for i, _ in guarded] != [i.tolist() for i, _ in unguarded]
    assert differ > 3


def test_attributes_may_change_after_construction():
    outputs, targets = batch(60, [25, 30])
    matcher = dino.HungarianMatcher(2, 5, 2)
    before = matcher(outputs, targets)
    matcher.cost_bbox, matcher.focal_alpha = 1, 0.4
    assert_same(matcher(outputs, targets), dino.HungarianMatcher(2, 1, 2, 0.4)(outputs, targets))
    assert before[0][1].tolist() != matcher(outputs, targets)[0][1].tolist()
    assert "cost_bbox=1" in repr(matcher) and "focal_alpha=0.4" in repr(matcher)


def test_minsum_takes_each_targets_cheapest_query():
    matcher = dino.SimpleMinsumMatcher(2, 5, 2, 0.4)
    repeated = 0
    for outputs, targets in batches():
        expected = cheapest(costs(outputs, targets, (2, 5, 2), alpha_40, 1e-6))
        assert_same(matcher(outputs, targets), expected)
        repeated += any(len(i.unique()) < len(i) for i, _ in expected)
    assert repeated > 20


@pytest.mark.parametrize("module", [detr, deformable_detr, dino], ids=lambda m: m.__name__)
def test_build_matcher(module):
    args = SimpleNamespace(**vars(SET_COSTS), matcher_type="HungarianMatcher")
    matcher = module.build_matcher(args)
    assert type(matcher) is module.HungarianMatcher
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (2, 5, 2)


def test_build_matcher_of_dino():
    args = SimpleNamespace(**vars(SET_COSTS), matcher_type="SimpleMinsumMatcher")
    assert type(dino.build_matcher(args)) is dino.SimpleMinsumMatcher
    assert dino.build_matcher(args).focal_alpha == 0.4
    args.matcher_type = "Greedy"
    with pytest.raises(ValueError, match=r"^args.matcher_type is 'Greedy', but must be one of Hun"):
        dino.build_matcher(args)


def rounds_of_the_original(blocks, rounds):
    """D-FINE's: after each round, 1e6 in the rows of its queries and of its targets' numbers."""
    blocks = [cost.clone() for cost in blocks]
    joined = []
    for _ in range(rounds):
        pairs = solved(blocks)
        joined.append(pairs)
        for cost, pair in zip(blocks, pairs, strict=True):
            cost[torch.stack(pair)] = 1e6
    return [
        tuple(torch.cat([pairs[b][side] for pairs in joined]) for side in (0, 1))
        for b in range(len(blocks))
    ]


@pytest.mark.parametrize("rounds", [True, 2, 4])
def test_return_topk_joins_rounds(rounds):
    matcher = dfine.HungarianMatcher(WEIGHTS, use_focal_loss=True)
    numbers_matter = 0
    for seed in range(20):
        outputs, targets = batch(120, [9, 0, 14, 1], seed=seed)
        result = matcher(outputs, targets, return_topk=rounds)
        assert list(result) == ["indices_o2m"]
        blocks = costs(outputs, targets, (2, 5, 2), focal)
        assert_same(result["indices_o2m"], rounds_of_the_original(blocks, int(rounds)))
        if rounds == 4:
            i, j = result["indices_o2m"][2]
            assert len(i) == 4 * 14 and sorted(j.tolist()) == sorted([*range(14)] * 4)
            first, later = set(i[:14].tolist()), set(i[14:].tolist())
            assert len(i.unique()) == len(i) and not later & set(range(14))
            numbers_matter += bool(first & set(range(14)))
    assert rounds != 4 or numbers_matter > 5  # queries 0..13 are matched, if at all, at first


def test_return_topk_with_more_targets_than_queries():
    outputs, targets = batch(6, [10, 2])
    matcher = dfine.HungarianMatcher(WEIGHTS, use_focal_loss=True)
    (i, j), _ = matcher(outputs, targets, return_topk=2)["indices_o2m"]
    assert len(i) == len(j) == 12 and i.tolist() == [*range(6)] * 2


@pytest.mark.parametrize("label", [0, 4, 5])
def test_labels_without_no_object(label):
    """The last logit is a class, too; errors count it."""
    matcher = rtdetr.HungarianMatcher(WEIGHTS)
    outputs, targets = batch(6, [2])
    classes = outputs["pred_logits"].shape[-1]
    targets[0]["labels"][1] = label + classes - 5
    if label < 5:
        assert len(matcher(outputs, targets)["indices"][0][0]) == 2
    else:
        message = rf"\['labels'\]\[1\] is {classes}, but logits have {classes} classes \(0"
        with pytest.raises(ValueError, match=message):
            matcher(outputs, targets)


def test_predictions_are_freed_at_once_although_an_error_was_caught():
    outputs, targets = batch(6, [2])
    targets[0]["labels"][0] = outputs["pred_logits"].shape[-1] - 1
    logits = weakref.ref(outputs["pred_logits"])
    gc.collect()
    gc.disable()
    try:
        rtdetr.HungarianMatcher(WEIGHTS)(outputs, targets)
        del outputs
        assert logits() is None
    finally:
        gc.enable()


def test_return_topk_without_images():
    outputs, _ = batch(6, [2])
    matcher = dfine.HungarianMatcher(WEIGHTS, use_focal_loss=True)
    none = {key: outputs[key][:0] for key in ("pred_logits", "pred_boxes")}
    assert matcher(none, [], return_topk=2) == {"indices_o2m": []}


@pytest.mark.parametrize("use_focal_loss", [True, False])
def test_dfine_nan_costs_one(use_focal_loss):
    class_cost = focal if use_focal_loss else None
    matcher = dfine.HungarianMatcher(WEIGHTS, use_focal_loss=use_focal_loss)
    chosen = 0
    for seed in range(20):
        outputs, targets = batch(12, [5, 0, 11, 20], seed=seed)
        outputs["pred_logits"][0, 1::3, 4] = torch.nan
        outputs["pred_logits"][2, ::2] = torch.nan
        outputs["pred_logits"][3, ::2] = torch.inf
        outputs["pred_boxes"][3, 1, 0] = torch.inf
        blocks = costs(outputs, targets, (2, 5, 2), class_cost)
        assert any(cost.isnan().any() for cost in blocks)
        expected = [cost.nan_to_num(nan=1.0) for cost in blocks]
        found = matcher(outputs, targets)["indices"]
        for (i, j), cost, pair in zip(found, expected, solved(expected), strict=True):
            # Several costs of 1 are several best matchings: of equal totals.
            assert len(i) == min(cost.shape)
            assert i.tolist() == sorted(set(i.tolist())) and len(j.unique()) == len(j)
            torch.testing.assert_close(cost[i, j].sum(), cost[pair].sum())
        bad = blocks[0].isnan()
        chosen += bool(bad[found[0]].any())
    assert chosen > 3  # 1 is no bad cost: they are not matched last


@pytest.mark.parametrize("name", MATCHERS)
def test_predictions_without_a_cost_are_an_error(name):
    matcher, classes, *_ = MATCHERS[name]
    outputs, targets = batch(20, [5, 6], classes)
    outputs["pred_boxes"][1, 7, 2] = torch.nan
    with pytest.raises(
        PredictionError, match=r"^outputs\['pred_boxes'\]\[1, 7\] is \[.*nan.*\], but "
    ):
        matcher(outputs, targets)
    outputs, targets = batch(20, [5, 6], classes)
    outputs["pred_logits"][1, 7] = torch.nan
    if isinstance(matcher, dfine.HungarianMatcher):
        assert len(pairs_of(matcher, outputs, targets)[1][0]) == 6
        return
    with pytest.raises(PredictionError, match=r"^outputs\['pred_logits'\]\[1, 7\] has no .*NaN"):
        matcher(outputs, targets)


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("name", MATCHERS)
def test_bad_targets_name_their_place(name, spoilt):
    matcher, classes, *_ = MATCHERS[name]
    outputs, targets = batch(20, [5, 6], classes)
    if spoilt:  # whatever else there is to say
        outputs["pred_logits"][0, 2] = torch.nan
    for label in (K, -1):
        targets[1]["labels"][3] = label
        message = rf"^targets\[1\]\['labels'\]\[3\] is {label}, but logits have \d+ classes"
        with pytest.raises(ValueError, match=message):
            matcher(outputs, targets)
    targets[1]["labels"][3] = 0
    targets[1]["boxes"][2, 3] = -0.5
    with pytest.raises(ValueError, match=r"^targets\[1\]\['boxes'\]\[2\] is \[.*-0\.5\], but "):
        matcher(outputs, targets)
    with pytest.raises(ValueError, match=r"^predictions for 2 images, but 1 targets$"):
        matcher(outputs, targets[:1])
    with pytest.raises(ValueError, match=r"^targets\[0\] has no 'boxes'$"):
        matcher(outputs, [{"labels": torch.tensor([0])}] * 2)


def test_bad_weights():
    for build in (detr.HungarianMatcher, deformable_detr.HungarianMatcher, dino.HungarianMatcher):
        with pytest.raises(ValueError, match=r"^all costs can't be 0"):
            build(0, 0, 0)
    for build in (rtdetr.HungarianMatcher, dfine.HungarianMatcher):
        with pytest.raises(ValueError, match=r"^all costs can't be 0"):
            build(dict.fromkeys(WEIGHTS, 0))
        with pytest.raises(ValueError, match=r"^weight_dict has 'cost_mask', but must have only "):
            build({**WEIGHTS, "cost_mask": 1})
        with pytest.raises(KeyError, match="cost_giou"):
            build({"cost_class": 1, "cost_bbox": 1})


def test_index_device():
    outputs, targets = batch(20, [5, 0, 6])
    matcher = deformable_detr.HungarianMatcher()
    matcher.index_device = "meta"  # a device that every machine has
    pairs = matcher(outputs, targets)
    assert [(i.shape, j.shape) for i, j in pairs] == [((5,), (5,)), ((0,), (0,)), ((6,), (6,))]
    assert all(index.device.type == "meta" for pair in pairs for index in pair)
    minsum = dino.SimpleMinsumMatcher()
    minsum.index_device = "meta"
    assert all(i.device.type == j.device.type == "meta" for i, j in minsum(outputs, targets))


def test_predictions_that_need_gradients():
    outputs, targets = batch(20, [5, 6])
    leaf = outputs["pred_logits"].requires_grad_()
    matcher = dfine.HungarianMatcher(WEIGHTS, use_focal_loss=True)
    assert not matcher(outputs, targets)["indices"][0][0].requires_grad
    with torch.no_grad():
        leaf[0, 0] = torch.nan
    assert not matcher(outputs, targets, return_topk=2)["indices_o2m"][0][0].requires_grad


def test_under_compile():
    """Not part of the graph, so that what is no error in eager mode is none there."""
    outputs, targets = batch(30, [4, 0, 7])
    del outputs["other"]
    matcher = dfine.HungarianMatcher(WEIGHTS, use_focal_loss=True)
    compiled = torch.compile(lambda *given: matcher(*given)["indices"], backend="eager")
    assert_same(compiled(outputs, targets), matcher(outputs, targets)["indices"])
    outputs["pred_logits"][0, 3] = torch.nan
    assert_same(compiled(outputs, targets), matcher(outputs, targets)["indices"])
    targets[0]["labels"][1] = K
    with pytest.raises(ValueError, match=r"^targets\[0\]\['labels'\]\[1\] is 9, but "):
        compiled(outputs, targets)
