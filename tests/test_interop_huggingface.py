"""The drop-in matchers of transformers against the installed originals."""

from types import SimpleNamespace

import pytest
import torch
from interop_cases import K, assert_not_constant, assert_same, assert_same_call, batch, batches
from transformers.loss import loss_deformable_detr as deformable
from transformers.loss import loss_for_object_detection as detection
from transformers.loss import loss_lw_detr as lw_detr
from transformers.loss import loss_rt_detr as rt_detr

from detr_fast.interop.matchers import huggingface


def config(use_focal_loss=True, alpha=0.25, gamma=2.0, weights=(2, 5, 2)):
    names = ("matcher_class_cost", "matcher_bbox_cost", "matcher_giou_cost")
    return SimpleNamespace(
        **dict(zip(names, weights, strict=True)),
        use_focal_loss=use_focal_loss,
        matcher_alpha=alpha,
        matcher_gamma=gamma,
    )


# Our class, the original, arguments of both, and the number of query groups if that is one.
MATCHERS = {
    "detr": (huggingface.HungarianMatcher, detection.HungarianMatcher, (2, 5, 2), None),
    "detr defaults": (huggingface.HungarianMatcher, detection.HungarianMatcher, (), None),
    "deformable": (
        huggingface.DeformableDetrHungarianMatcher,
        deformable.DeformableDetrHungarianMatcher,
        (2, 5, 2),
        None,
    ),
    "rt_detr": (
        huggingface.RTDetrHungarianMatcher,
        rt_detr.RTDetrHungarianMatcher,
        (config(),),
        None,
    ),
    "rt_detr unusual": (
        huggingface.RTDetrHungarianMatcher,
        rt_detr.RTDetrHungarianMatcher,
        (config(alpha=0.6, gamma=1.5),),
        None,
    ),
    "rt_detr softmax": (
        huggingface.RTDetrHungarianMatcher,
        rt_detr.RTDetrHungarianMatcher,
        (config(use_focal_loss=False),),
        None,
    ),
} | {
    f"lw_detr {groups}": (
        huggingface.LwDetrHungarianMatcher,
        lw_detr.LwDetrHungarianMatcher,
        (2, 5, 2),
        groups,
    )
    for groups in (1, 2, 3)
}


def renamed(outputs, targets):
    return (
        {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"], "other": None},
        [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets],
    )


def both(name):
    ours, theirs, arguments, groups = MATCHERS[name]
    more = () if groups is None else (groups,)
    ours, theirs = ours(*arguments), theirs(*arguments)
    return lambda *given: ours(*given, *more), lambda *given: theirs(*given, *more)


@pytest.mark.parametrize("name", MATCHERS)
def test_same_call(name):
    ours, theirs, *_ = MATCHERS[name]
    assert ours.__name__ == theirs.__name__
    assert_same_call(ours, theirs)


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_original(name, dtype):
    ours, theirs = both(name)
    seen = []
    for given in batches(dtype=dtype):
        outputs, targets = renamed(*given)
        # In half precision the originals do not run on a CPU: torch.cdist refuses it.
        in_float = {key: v if v is None else v.float() for key, v in outputs.items()}
        groups = MATCHERS[name][3]
        if groups and outputs["logits"].shape[1] < groups:
            continue
        seen.append(ours(outputs, targets))
        assert_same(seen[-1], theirs(in_float, targets))
    assert_not_constant(seen)


@pytest.mark.parametrize("name", MATCHERS)
def test_logits_that_are_not_finite_come_last(name):
    ours, theirs = both(name)
    kept = 0
    for seed in range(10):
        outputs, targets = renamed(*batch(30, [4, 0, 9], seed=seed))
        outputs["logits"][0, ::5] = torch.nan
        outputs["logits"][2, 1] = torch.inf
        outputs["logits"][2, 2, 3] = torch.nan  # one class's alone
        outputs["pred_boxes"][2, 3, 2] = torch.inf
        found = ours(outputs, targets)
        assert_same(found, theirs(outputs, targets))
        kept += all(n % 5 for n in found[0][0].tolist())
    assert kept == 10


def test_no_more_than_needed_of_what_is_not_finite():
    """12 targets, and 8 queries of 12 that have a cost; the original's choice among them is not
    the best: beside 3e38 it does not see the other costs."""
    for name in ("detr", "deformable"):
        ours, theirs = both(name)
        outputs, targets = renamed(*batch(12, [12]))
        outputs["logits"][0, ::3] = torch.nan
        ((i, j),) = ours(outputs, targets)
        ((their_i, _),) = theirs(outputs, targets)
        assert i.tolist() == their_i.tolist() == [*range(12)]
        assert sorted(j.tolist()) == [*range(12)]


@pytest.mark.parametrize("name", MATCHERS)
def test_boxes_of_nan_and_negative_boxes_are_errors_in_both(name):
    ours, theirs = both(name)
    for spoil in (torch.nan, -0.5):
        outputs, targets = renamed(*batch(20, [5, 6]))
        outputs["pred_boxes"][1, 7, 2] = spoil
        with pytest.raises(ValueError, match=r"must be in .* \(corner\) format"):
            theirs(outputs, targets)
        with pytest.raises(ValueError, match=r"^outputs\['pred_boxes'\]\[1, 7\] is \[.*\], but "):
            ours(outputs, targets)


@pytest.mark.parametrize("name", MATCHERS)
def test_bad_targets_name_their_place(name):
    ours, _ = both(name)
    outputs, targets = renamed(*batch(20, [5, 6], classes=K))
    for label in (K, -1):
        targets[1]["class_labels"][3] = label
        message = rf"^targets\[1\]\['class_labels'\]\[3\] is {label}, but logits have \d classes"
        with pytest.raises(ValueError, match=message):
            ours(outputs, targets)
    targets[1]["class_labels"][3] = 0
    targets[1]["boxes"][2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"^targets\[1\]\['boxes'\]\[2\] is \[.*nan\], but "):
        ours(outputs, targets)
    with pytest.raises(ValueError, match=r"^predictions for 2 images, but 1 targets$"):
        ours(outputs, targets[:1])


def test_errors_of_groups_name_the_callers_query():
    outputs, targets = renamed(*batch(20, [5, 6]))
    outputs["pred_boxes"][1, 17, 2] = torch.nan  # the third query of the fourth group
    matcher = huggingface.LwDetrHungarianMatcher()
    with pytest.raises(ValueError, match=r"^outputs\['pred_boxes'\]\[1, 17\] is "):
        matcher(outputs, targets, group_detr=4)
    outputs["pred_boxes"][1, 17, 2] = 1
    targets[1]["class_labels"][3] = K
    with pytest.raises(ValueError, match=r"^targets\[1\]\['class_labels'\]\[3\] is 9, but "):
        matcher(outputs, targets, group_detr=4)
    with pytest.raises(ValueError, match=r"^group_detr is 0, but must be positive$"):
        matcher(outputs, targets, group_detr=0)


def test_weights_of_zero_are_errors_in_both():
    for kinds in (
        (huggingface.HungarianMatcher, detection.HungarianMatcher),
        (huggingface.LwDetrHungarianMatcher, lw_detr.LwDetrHungarianMatcher),
    ):
        for kind in kinds:
            with pytest.raises(ValueError, match=r"[Aa]ll costs .*can't be 0"):
                kind(0, 0, 0)
    for kind in (huggingface.RTDetrHungarianMatcher, rt_detr.RTDetrHungarianMatcher):
        with pytest.raises(ValueError, match=r"[Aa]ll costs .*can't be 0"):
            kind(config(weights=(0, 0, 0)))
