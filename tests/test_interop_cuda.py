"""The drop-in matchers on CUDA predictions: on a GPU where there is one, and everywhere with a
stand-in for the kernels, which reports what is wrong as they do."""

from types import SimpleNamespace

import pytest
import torch
from devices import needs_cuda
from interop_cases import K, assert_same, batch
from test_matching_cuda import MATCHER, Kernels, code, tensor_at

from detr_fast import _C, FastMatcher, check_faults, faults
from detr_fast.interop.matchers import dfine, dino, huggingface, rfdetr, rtdetr, ultralytics
from detr_fast.matching import cuda

WEIGHTS = {"cost_class": 2, "cost_bbox": 5, "cost_giou": 2}


def plainly(kind):
    return lambda outputs, targets: kind(outputs, targets)


def in_groups(kind):
    return lambda outputs, targets: kind(outputs, targets, group_detr=3)


def as_huggingface(kind):
    return lambda outputs, targets: kind(
        {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]},
        [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets],
    )


def as_ultralytics(kind):
    return lambda outputs, targets: kind(
        outputs["pred_boxes"],
        outputs["pred_logits"],
        torch.cat([target["boxes"] for target in targets]),
        torch.cat([target["labels"] for target in targets]),
        [len(target["labels"]) for target in targets],
    )


def top_2(kind):
    return lambda outputs, targets: kind(outputs, targets, return_topk=2)["indices_o2m"]


def indices(kind):
    return lambda outputs, targets: kind(outputs, targets)["indices"]


# How it is called, the matcher, and whether it has an answer for logits of NaN.
MATCHERS = {
    "dino": (plainly, dino.HungarianMatcher(2, 5, 2), False),
    "rtdetr softmax": (indices, rtdetr.HungarianMatcher(WEIGHTS), False),
    "dfine": (indices, dfine.HungarianMatcher(WEIGHTS, True), True),
    "dfine top 2": (top_2, dfine.HungarianMatcher(WEIGHTS, True), True),
    "rfdetr": (in_groups, rfdetr.HungarianMatcher(2, 5, 2), True),
    "huggingface": (as_huggingface, huggingface.HungarianMatcher(2, 5, 2), True),
    "ultralytics": (as_ultralytics, ultralytics.HungarianMatcher(use_fl=False), True),
}


class ReportingKernels(Kernels):
    """Reports labels and logits without a cost, as the kernels do; the host sees it later."""

    def match(self, **given):
        b, n, c = given["shape"]
        labels = tensor_at(given["labels"], torch.int64, given["targets"])
        focal, tolerant = given["cost"][1], given["nonfinite_last"]
        (logits,) = (tensor_at(a, torch.float32, b, n, c) for a in given["logits"])
        counts = torch.tensor(given["counts"])
        images = torch.arange(b).repeat_interleave(counts)
        slots = tensor_at(given["faults"], torch.int64, b)
        wrong = ((labels < 0) | (labels >= c - (not focal))).nonzero()
        if len(wrong):
            image, first = int(images[wrong[0, 0]]), int(wrong[0, 0])
            before = int(counts[:image].sum())
            slots[image] = code(_C.Status.invalid_label, -1, first - before)
        nan = logits.isnan().any(-1).nonzero()
        if len(nan) and not tolerant:
            slots[int(nan[0, 0])] = code(_C.Status.invalid_logits, int(nan[0, 1]), -1)
        if slots.any():
            self.calls += 1
            tensor_at(given["pairs"], torch.int64, 2 * sum(min(n, m) for m in given["counts"]))[
                :
            ] = 0
            return
        super().match(**given)


@pytest.fixture
def kernels(monkeypatch):
    if _C.cuda_version is None:
        pytest.skip("built without CUDA kernels")
    stand_in = ReportingKernels()
    monkeypatch.setattr(_C, "cuda", SimpleNamespace(match=stand_in.match))
    monkeypatch.setattr(cuda, "_workspace", lambda device, rows, cols: 64)
    monkeypatch.setattr(f"{MATCHER}._reads_whole_tensors", lambda layers: True)
    yield stand_in
    faults._slots.clear()


def cases():
    """A batch; one whose targets have the last logit's class; and one with logits of NaN."""
    for seed in range(3):
        yield batch(30, [4, 0, 7], seed=seed)
    last = batch(30, [4, 2, 7], classes=K, seed=5)
    last[1][2]["labels"][:3] = K - 1
    yield last
    spoilt = batch(30, [4, 2, 7], seed=6)
    spoilt[0]["pred_logits"][1, 5] = torch.nan
    yield spoilt


@pytest.mark.filterwarnings("ignore:some predictions have no finite")
@pytest.mark.parametrize("name", MATCHERS)
def test_stand_in_gives_the_same(name, kernels, monkeypatch):
    call, matcher, fills = MATCHERS[name]
    for outputs, targets in cases():
        with monkeypatch.context() as context:
            context.setattr(f"{MATCHER}._reads_whole_tensors", lambda layers: False)
            spoilt = outputs["pred_logits"].isnan().any()
            expected = None if spoilt and not fills else call(matcher)(outputs, targets)
        calls = kernels.calls
        if expected is None:
            with pytest.raises(ValueError, match=r"^outputs\['pred_logits'\]\[1, 5\] has no "):
                call(matcher)(outputs, targets)
        else:
            assert_same(call(matcher)(outputs, targets), expected)
        assert kernels.calls > calls
        outputs, targets = batch(30, [4, 2, 7])
        targets[2]["labels"][3] = K
        with pytest.raises(ValueError, match=r"\[3\] is not one of|^gt_cls\[9\] is not one of"):
            call(matcher)(outputs, targets)


def test_stand_in_keeps_faults_of_earlier_calls(kernels):
    """A matcher with an answer for its own predictions has none for those of another."""
    outputs, targets = batch(30, [4, 2, 7])
    spoilt = {**outputs, "pred_logits": outputs["pred_logits"].clone()}
    spoilt["pred_logits"][1, 5] = torch.nan
    FastMatcher(class_cost="focal")(spoilt, targets)  # not found yet
    matcher = dfine.HungarianMatcher(WEIGHTS, True)
    with pytest.raises(ValueError, match=r"^outputs\['pred_logits'\]\[1, 5\] .* earlier call"):
        matcher(outputs, targets)
    assert len(matcher(outputs, targets)["indices"]) == 3


@needs_cuda
@pytest.mark.filterwarnings("ignore:some predictions have no finite")
@pytest.mark.parametrize("name", MATCHERS)
def test_on_a_gpu(name):
    call, matcher, fills = MATCHERS[name]
    for outputs, targets in cases():
        if outputs["pred_logits"].isnan().any() and not fills:
            continue
        expected = call(matcher)(outputs, targets)
        given = (
            {key: None if x is None else x.cuda() for key, x in outputs.items()},
            [{key: x.cuda() for key, x in target.items()} for target in targets],
        )
        found = call(matcher)(*given)
        assert all(index.device.type == "cpu" for pair in found for index in pair)
        assert_same(found, expected)
        matcher.index_device = "cuda"
        try:
            found = call(matcher)(*given)
        finally:
            del matcher.index_device
        assert all(index.device.type == "cuda" for pair in found for index in pair)
        assert_same([(i.cpu(), j.cpu()) for i, j in found], expected)
    check_faults()
