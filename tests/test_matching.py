"""FastMatcher against its torch + SciPy twin, and every error it names."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from matching_cases import CASES, K, assert_same, predictions, targets_of
from torchvision import tv_tensors
from torchvision.ops import box_convert, generalized_box_iou

from detr_fast import FastMatcher, PackedTargets, reference
from detr_fast.matching import cpu, input


def total(cost, match) -> float:
    return float(cost[match[0], match[1]].sum())


@pytest.mark.parametrize("case", CASES)
def test_equals_the_twin(case):
    b, n, sizes = CASES[case]
    for seed in range(10):
        outputs, targets = predictions(b, n, seed=seed), targets_of(sizes, seed=seed)
        ours = FastMatcher()(outputs, targets)
        assert_same(ours, reference.HungarianMatcher()(outputs, targets))
        for (i, j), m in zip(ours, sizes, strict=True):
            assert len(i) == len(j) == min(n, m)
            assert (i.diff() > 0).all()


@pytest.mark.parametrize(
    "weights", [(1, 5, 2), (1, 1, 1), (2, 0, 0), (0, 3, 0), (0, 0, 1), (-1, 5, 2)]
)
def test_weights(weights):
    for seed in range(5):
        outputs = predictions(2, 50, k=60, seed=seed)
        targets = targets_of([8, 5], k=60, seed=seed)
        if weights[1:] == (0, 0):  # equal labels would tie
            for target in targets:
                target["labels"] = torch.randperm(60)[: len(target["labels"])]
        twin = reference.HungarianMatcher(*weights)
        assert_same(FastMatcher(*weights)(outputs, targets), twin(outputs, targets))


@pytest.mark.parametrize("k", [1, 2, 7, 8, 91, 365])
def test_class_counts(k):
    outputs, targets = predictions(2, 40, k=k, seed=k), targets_of([6, 9], k=k, seed=k)
    assert_same(FastMatcher()(outputs, targets), reference.HungarianMatcher()(outputs, targets))


def test_class_probabilities_are_accurate_to_float32():
    """Two queries per image, whose probabilities differ by a few millionths."""
    g = torch.Generator().manual_seed(0)
    b = 4000
    logits = 4 * torch.randn(b, 2, K + 1, generator=g, dtype=torch.float64)
    p = logits.softmax(-1)[:, :, 0]
    logits[:, 1, 0] += (p[:, 0].logit() - p[:, 1].logit()) + 1e-5 * torch.randn(b, generator=g)
    logits = logits.float()
    p = logits.double().softmax(-1)[:, :, 0]
    told_apart = (p[:, 0] / p[:, 1] - 1).abs() > 3e-6
    assert told_apart.sum() > 1000
    outputs = {"pred_logits": logits, "pred_boxes": torch.full((b, 2, 4), 0.5)}
    target = {"labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5)}
    matches = FastMatcher(1e6, 0, 0)(outputs, [target] * b)
    winner = torch.cat([i for i, _ in matches])
    assert torch.equal(winner[told_apart], p.argmax(1)[told_apart])


def nearly_identical(b, n, seed):
    """Predictions as at initialisation: one box and class distribution, slightly varied."""
    outputs = predictions(b, n, seed=seed)
    for key, value in outputs.items():
        outputs[key] = value[:, :1] + 1e-2 * (value - value.mean(1, keepdim=True))
    outputs["pred_boxes"].clamp_(0.01, 0.99)
    return outputs


def test_initial_predictions_where_targets_compete():
    for seed in range(10):
        outputs, targets = nearly_identical(2, 100, seed), targets_of([30, 12], seed=seed)
        exact = {key: value.double() for key, value in outputs.items()}
        for b, match in enumerate(FastMatcher()(outputs, targets)):
            cost = reference.matching_cost(
                exact["pred_logits"][b],
                exact["pred_boxes"][b],
                targets[b]["labels"],
                targets[b]["boxes"].double(),
            )
            best = reference.linear_sum_assignment(cost)
            assert total(cost, match) <= total(cost, best) + 1e-5


def test_batched_equals_single():
    outputs, targets = predictions(4, 25), targets_of([3, 0, 30, 8])
    matcher = FastMatcher()
    batched = matcher(outputs, targets)
    for b, target in enumerate(targets):
        single = matcher({key: value[b : b + 1] for key, value in outputs.items()}, [target])
        assert_same(batched[b : b + 1], single)


def test_layers_in_one_call_equal_layers_one_by_one():
    stack = predictions(6 * 3, 40)
    layers = [{key: value[3 * k : 3 * k + 3] for key, value in stack.items()} for k in range(6)]
    targets = targets_of([5, 0, 12])
    matcher = FastMatcher()
    together = matcher.match_layers(layers, targets)
    assert len(together) == 6
    for matches, layer in zip(together, layers, strict=True):
        assert_same(matches, matcher(layer, targets))
        assert_same(matches, reference.HungarianMatcher()(layer, targets))
    assert matcher.match_layers([], targets) == []
    with pytest.raises(ValueError, match="layers is empty"):
        matcher.match_packed([], targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layers_call_compiled_code_once_and_read_in_place(monkeypatch, dtype):
    calls = []
    compiled = cpu._C.match
    monkeypatch.setattr(cpu._C, "match", lambda **k: calls.append(k) or compiled(**k))
    layers = [predictions(2, 10, seed=seed, dtype=dtype) for seed in range(4)]
    targets = targets_of([2, 3])
    FastMatcher().match_layers(layers, targets)
    assert len(calls) == 1
    assert calls[0]["logits"] == [layer["pred_logits"].data_ptr() for layer in layers]
    assert calls[0]["boxes"] == [layer["pred_boxes"].data_ptr() for layer in layers]
    assert calls[0]["labels"] == [target["labels"].data_ptr() for target in targets]
    assert calls[0]["target_boxes"] == [target["boxes"].data_ptr() for target in targets]


def test_model_outputs_with_aux_outputs_are_accepted_as_they_are():
    outputs = predictions(1, 10)
    outputs["aux_outputs"] = [predictions(1, 10, seed=s) for s in (1, 2)]
    targets = targets_of([3])
    targets[0]["image_id"] = 7
    layers = [outputs, *outputs["aux_outputs"]]
    assert len(FastMatcher().match_layers(layers, targets)) == 3


def test_non_contiguous_predictions_and_targets():
    outputs, targets = predictions(2, 30), targets_of([4, 6])
    strange = {
        "pred_logits": outputs["pred_logits"].transpose(0, 2).contiguous().transpose(0, 2),
        "pred_boxes": outputs["pred_boxes"].repeat(1, 2, 1)[:, :30].flip(1).flip(1)[..., :],
    }
    strange["pred_boxes"] = torch.stack([strange["pred_boxes"]] * 2, -1)[..., 0]
    assert not any(value.is_contiguous() for value in strange.values())
    odd_targets = [
        {
            "labels": torch.stack([t["labels"]] * 2, -1)[:, 0],
            "boxes": t["boxes"].t().contiguous().t(),
        }
        for t in targets
    ]
    matcher = FastMatcher()
    assert_same(matcher(strange, odd_targets), matcher(outputs, targets))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    """Half precision is widened first; float64 is computed in float64."""
    outputs, targets = predictions(2, 40, dtype=dtype), targets_of([5, 9])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    converted = {key: value.to(wide) for key, value in outputs.items()}
    wide_targets = [{**t, "boxes": t["boxes"].to(wide)} for t in targets]
    expected = reference.HungarianMatcher()(converted, wide_targets)
    assert_same(FastMatcher()(outputs, targets), expected)
    mixed = {"pred_logits": outputs["pred_logits"], "pred_boxes": converted["pred_boxes"].float()}
    FastMatcher()(mixed, targets)


def test_float64_predictions_are_not_rounded_to_float32():
    outputs = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": torch.full((1, 2, 4), 0.5)}
    outputs = {key: value.double() for key, value in outputs.items()}
    targets = [{"labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5).double()}]
    for nearer in (0, 1):
        outputs["pred_boxes"][0, :, 0] = 0.5 + 1e-12
        outputs["pred_boxes"][0, nearer, 0] = 0.5
        assert FastMatcher()(outputs, targets)[0][0].tolist() == [nearer]


def test_label_and_box_dtypes_of_targets():
    outputs, targets = predictions(1, 20), targets_of([5])
    expected = FastMatcher()(outputs, targets)
    for dtype in (torch.int32, torch.uint8, torch.int16):
        cast = [{"labels": targets[0]["labels"].to(dtype), "boxes": targets[0]["boxes"].double()}]
        assert_same(FastMatcher()(outputs, cast), expected)


def test_empty_targets_written_as_an_empty_list():
    empty = {"labels": torch.tensor([]), "boxes": torch.tensor([])}
    ours = FastMatcher()(predictions(2, 10), [empty, targets_of([3])[0]])
    assert [len(i) for i, _ in ours] == [0, 3]


def test_default_device_does_not_matter():
    outputs, targets = predictions(2, 10), targets_of([3, 0])
    expected = FastMatcher()(outputs, targets)
    with torch.device("meta"):
        assert_same(FastMatcher()(outputs, targets), expected)
        FastMatcher()({key: value[1:] for key, value in outputs.items()}, targets[1:])


def without_memory(tensor):
    freed = tensor.clone()
    freed.untyped_storage().resize_(0)
    return freed


@pytest.mark.parametrize("key", ["pred_logits", "pred_boxes", "labels", "boxes"])
def test_tensors_without_memory_are_refused(key):
    """As fully sharded parameters, DTensors and fake tensors are."""
    outputs, targets = predictions(2, 10), targets_of([0, 4])
    for given in (outputs, targets[1]):
        if key in given:
            given[key] = without_memory(given[key])
    name = f"targets[1]['{key}']" if key in targets[1] else f"outputs['{key}']"
    with pytest.raises(ValueError, match=re.escape(f"{name} is a Tensor without memory")):
        FastMatcher()(outputs, targets)


def test_functionalized_tensors_are_refused():
    outputs, targets = predictions(2, 10), targets_of([0, 4])

    def match(logits):
        return FastMatcher()({**outputs, "pred_logits": logits}, targets)[1][0]

    with pytest.raises(ValueError, match="without memory"):
        torch.func.functionalize(match)(outputs["pred_logits"])


def test_no_gradient_flows_and_inputs_stay_as_they_are():
    outputs, targets = predictions(2, 10), targets_of([3, 4])
    before = {key: value.clone() for key, value in outputs.items()}
    for value in outputs.values():
        value.requires_grad_()
    ((i, _), _) = FastMatcher()(outputs, targets)
    assert not i.requires_grad
    for key, value in outputs.items():
        assert torch.equal(value, before[key])


def test_masked_classes_are_legitimate():
    """A logit of -inf is a probability of 0."""
    outputs, targets = predictions(2, 20), targets_of([5, 6])
    outputs["pred_logits"][:, :, 3] = -torch.inf
    outputs["pred_logits"][0, 4] = torch.tensor([90.0, -90.0, 0.0, -200.0, 1e30, -1e30])
    assert_same(FastMatcher()(outputs, targets), reference.HungarianMatcher()(outputs, targets))


POINT = [0.5, 0.5, 0.0, 0.0]
ZERO_AREA = {
    # name: (box, target, GIoU)
    "one point": (POINT, POINT, 0.0),
    "two points": (POINT, [0.2, 0.2, 0.0, 0.0], -1.0),
    "one line": ([0.5, 0.5, 0.2, 0.0], [0.5, 0.5, 0.2, 0.0], 0.0),
    "parallel lines": ([0.5, 0.5, 0.2, 0.0], [0.5, 0.6, 0.2, 0.0], -1.0),
    "apart on one line": ([0.5, 0.5, 0.2, 0.0], [0.9, 0.5, 0.2, 0.0], 0.0),
    "areas that underflow": ([0.0, 0.0, 1e-30, 1e-30], [0.0, 0.0, 1e-30, 1e-30], 0.0),
    "point in a box": (POINT, [0.5, 0.5, 0.4, 0.4], 0.0),
    "box around a point": ([0.5, 0.5, 0.4, 0.4], POINT, 0.0),
}


def torchvision_giou(box, target) -> float:
    corners = [box_convert(torch.tensor([b]), "cxcywh", "xyxy") for b in (box, target)]
    return float(generalized_box_iou(*corners))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in ZERO_AREA]
    + [(case, torch.float64) for case in ZERO_AREA if "underflow" not in case],
)
def test_giou_of_zero_area_boxes_is_defined(case, dtype):
    """Query 0 holds the pair; query 1 an ordinary box, whose class probability balances the two."""
    box, target, giou = ZERO_AREA[case]
    rival = [0.45, 0.5, 0.25, 0.3]
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([target], dtype=dtype)}]
    for margin, winner in ((0.01, 0), (-0.01, 1)):
        p = 0.5 + (torchvision_giou(rival, target) - giou + margin) / 8
        logits = torch.tensor([[[p, 1 - p], [0.5, 0.5]]], dtype=dtype).log()
        outputs = {"pred_logits": logits, "pred_boxes": torch.tensor([[box, rival]], dtype=dtype)}
        matcher = FastMatcher(cost_class=8, cost_bbox=0, cost_giou=1)
        assert matcher(outputs, targets)[0][0].tolist() == [winner]


def test_the_twin_rejects_a_pair_without_area():
    """0/0 there, defined here: the one place where the two differ on purpose."""
    outputs = {"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": torch.tensor([[POINT]])}
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([POINT])}]
    with pytest.raises(ValueError, match="invalid numeric entries"):
        reference.HungarianMatcher()(outputs, targets)
    assert_same(FastMatcher()(outputs, targets), [(torch.tensor([0]), torch.tensor([0]))])


def _set(container, key, value):
    container[key] = value


# The exact message: the change to good layers and targets that must raise it.
ERRORS = {
    "layers[1] has no 'pred_logits'": lambda o, t: o[1].pop("pred_logits"),
    "layers[0] has no 'pred_boxes'": lambda o, t: o[0].pop("pred_boxes"),
    "layers[0]['pred_logits'] has shape [40, 6], but must be [B, N, K + 1]": lambda o, t: _set(
        o[0], "pred_logits", torch.zeros(40, 6)
    ),
    "layers[0]['pred_boxes'] has shape [4, 9, 4], but 'pred_logits' of shape [4, 10, 6] needs "
    "[4, 10, 4]": lambda o, t: _set(o[0], "pred_boxes", torch.zeros(4, 9, 4)),
    "layers[0]['pred_boxes'] has shape [4, 10, 5], but 'pred_logits' of shape [4, 10, 6] needs "
    "[4, 10, 4]": lambda o, t: _set(o[0], "pred_boxes", torch.zeros(4, 10, 5)),
    "layers[0]['pred_logits'] is torch.int64, but must be floating point": lambda o, t: _set(
        o[0], "pred_logits", torch.zeros(4, 10, 6, dtype=torch.int64)
    ),
    "layers[0]['pred_boxes'] must be a tensor, not list": lambda o, t: _set(
        o[0], "pred_boxes", [[0.5] * 4]
    ),
    "layers[1]['pred_logits'] has shape [4, 11, 6], but layers[0]['pred_logits'] has "
    "[4, 10, 6]": lambda o, t: o[1].update(predictions(4, 11)),
    "predictions for 4 images, but 3 targets": lambda o, t: t.pop(),
    "targets[2] has no 'labels'": lambda o, t: t[2].pop("labels"),
    "targets[0] has no 'boxes'": lambda o, t: t[0].pop("boxes"),
    "targets[1]['boxes'] must be a tensor, not list": lambda o, t: _set(t[1], "boxes", []),
    "targets[2]['labels'] has shape [3, 1], but must be [M]": lambda o, t: _set(
        t[2], "labels", torch.zeros(3, 1, dtype=torch.int64)
    ),
    "targets[2]['labels'] is torch.float32, but labels must be integers": lambda o, t: _set(
        t[2], "labels", torch.zeros(3)
    ),
    "targets[2]['boxes'] has shape [2, 4], but 3 labels need [3, 4]": lambda o, t: _set(
        t[2], "boxes", torch.zeros(2, 4)
    ),
    "targets[0]['boxes'] has shape [4], but 2 labels need [2, 4]": lambda o, t: _set(
        t[0], "boxes", torch.zeros(4)
    ),
    "targets[3]['labels'][5] is 5, but logits have 5 classes (0..4)": lambda o, t: _set(
        t[3]["labels"], 5, 5
    ),
    "layers[1] must be a dict of tensors, not NoneType": lambda o, t: _set(o, 1, None),
    "targets[2] must be a dict of tensors, not list": lambda o, t: _set(t, 2, []),
    "targets[2]['boxes'] is torch.complex64, but boxes must be real": lambda o, t: _set(
        t[2], "boxes", torch.zeros(3, 4, dtype=torch.complex64)
    ),
    "targets[2]['labels'][0] is -1, but logits have 5 classes (0..4)": lambda o, t: _set(
        t[2]["labels"], 0, -1
    ),
    "targets[2]['boxes'][0] is [0.5, 0.5, -0.25, 0.5], but cx, cy, w, h must be finite and w, h "
    "not negative": lambda o, t: _set(t[2]["boxes"], 0, torch.tensor([0.5, 0.5, -0.25, 0.5])),
    "targets[3]['boxes'][7] is [nan, 0.5, 0.5, 0.5], but cx, cy, w, h must be finite and w, h "
    "not negative": lambda o, t: _set(t[3]["boxes"], 7, torch.tensor([torch.nan, 0.5, 0.5, 0.5])),
    "targets[0]['boxes'][1] is [0.5, 0.5, 0.5, inf], but cx, cy, w, h must be finite and w, h "
    "not negative": lambda o, t: _set(t[0]["boxes"], 1, torch.tensor([0.5, 0.5, 0.5, torch.inf])),
    "layers[1]['pred_logits'][3, 7] has no softmax: it holds NaN, inf or only -inf": lambda o, t: (
        _set(o[1]["pred_logits"], (3, 7, 5), torch.nan)
    ),
    "layers[0]['pred_logits'][2, 9] has no softmax: it holds NaN, inf or only -inf": lambda o, t: (
        _set(o[0]["pred_logits"], (2, 9, 0), torch.inf)
    ),
    "layers[0]['pred_logits'][0, 0] has no softmax: it holds NaN, inf or only -inf": lambda o, t: (
        _set(o[0]["pred_logits"], (0, 0), -torch.inf)
    ),
    "layers[1]['pred_boxes'][0, 4] is [0.5, inf, 0.5, 0.5], but cx, cy, w, h must be finite and "
    "w, h not negative": lambda o, t: _set(
        o[1]["pred_boxes"], (0, 4), torch.tensor([0.5, torch.inf, 0.5, 0.5])
    ),
    "layers[1]['pred_boxes'][3, 4] is [0.5, 0.5, 0.5, nan], but cx, cy, w, h must be finite and "
    "w, h not negative": lambda o, t: _set(
        o[1]["pred_boxes"], (3, 4), torch.tensor([0.5, 0.5, 0.5, torch.nan])
    ),
    "layers[0]['pred_boxes'][2, 1] is [0.5, 0.5, 0.5, -0.5], but cx, cy, w, h must be finite and "
    "w, h not negative": lambda o, t: _set(
        o[0]["pred_boxes"], (2, 1), torch.tensor([0.5, 0.5, 0.5, -0.5])
    ),
    "the cost of matching layers[0]['pred_boxes'][2] to targets[2]['boxes'][0] overflows": (
        lambda o, t: _set(o[0]["pred_boxes"], (2, 1), torch.tensor([0.5, 0.5, 1e30, 1e30]))
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_name_the_place(message):
    layers, targets = [predictions(4, 10, seed=s) for s in (0, 1)], targets_of([2, 0, 3, 8])
    ERRORS[message](layers, targets)
    with pytest.raises(ValueError) as raised:
        FastMatcher().match_layers(layers, targets)
    assert str(raised.value) == message


def test_one_logit_is_no_object():
    outputs, targets = (
        predictions(1, 10, k=0),
        [{**targets_of([2])[0], "labels": torch.zeros(2).int()}],
    )
    with pytest.raises(ValueError, match="is 0, but logits have no class but 'no object'"):
        FastMatcher()(outputs, targets)
    assert len(FastMatcher(class_cost="focal")(outputs, targets)[0][0]) == 2


def test_one_dict_is_no_list():
    outputs, targets = predictions(1, 10), targets_of([2])
    with pytest.raises(ValueError, match="layers is one layer's outputs, expected a list"):
        FastMatcher().match_layers(outputs, targets)
    with pytest.raises(ValueError, match="targets is one dict, expected a list of one per image"):
        FastMatcher()(outputs, targets[0])


def test_errors_of_a_single_call_speak_of_outputs():
    outputs, targets = predictions(4, 10), targets_of([2, 0, 3, 8])
    outputs["pred_boxes"][3, 2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^outputs\['pred_boxes'\]\[3, 2\] is \[nan, "):
        FastMatcher()(outputs, targets)


def test_label_message_for_coco():
    outputs, targets = predictions(4, 10, k=91), targets_of([1, 1, 1, 8], k=91)
    targets[3]["labels"][5] = 91
    expected = r"^targets\[3\]\['labels'\]\[5\] is 91, but logits have 91 classes \(0\.\.90\)$"
    with pytest.raises(ValueError, match=expected):
        FastMatcher()(outputs, targets)


def test_weight_errors():
    with pytest.raises(ValueError, match="all costs can't be 0"):
        FastMatcher(0, 0, 0)
    with pytest.raises(ValueError, match="cost_class is '1', but must be a number"):
        FastMatcher("1")
    with pytest.raises(ValueError, match="cost_bbox is nan, but must be in"):
        FastMatcher(1, np.nan, 1)
    with pytest.raises(ValueError, match="cost_giou is inf"):
        FastMatcher(cost_giou=np.inf)
    with pytest.raises(ValueError, match="cost_class is -1e\\+29, but must be in"):
        FastMatcher(cost_class=-1e29)


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_the_largest_weights_do_not_overflow(class_cost):
    """Not even at coordinates far beyond any picture."""
    outputs, targets = predictions(2, 10), targets_of([3, 4])
    outputs["pred_boxes"] = outputs["pred_boxes"] * 1e7
    found = FastMatcher(1e28, -1e28, 1e28, class_cost=class_cost)(outputs, targets)
    assert [len(queries) for queries, _ in found] == [3, 4]


def test_index_device_may_be_a_device():
    assert FastMatcher(index_device=torch.device("cpu"))._indices_on_cpu()
    assert FastMatcher(index_device="cpu")._indices_on_cpu()
    assert not FastMatcher()._indices_on_cpu()
    with pytest.raises(ValueError, match="index_device is 'cuda:0', but must be one of None, cpu"):
        FastMatcher(index_device=torch.device("cuda", 0))


def test_repr_and_defaults():
    assert repr(FastMatcher()) == "FastMatcher(cost_class=1, cost_bbox=5, cost_giou=2)"
    assert repr(FastMatcher(2, 3.5, 0)) == "FastMatcher(cost_class=2, cost_bbox=3.5, cost_giou=0)"
    assert not list(FastMatcher().state_dict())


def test_packing_for_one_transfer_keeps_values_and_shapes():
    """The transfer of tensors on another device, with the CPU in its place."""
    tensors = [
        torch.arange(3),
        torch.rand(2, 4, dtype=torch.float64),
        torch.empty(0, 4),
        torch.rand(1, 5, 3),
    ]
    for ours, original in zip(input.pack_and_copy(tensors), tensors, strict=True):
        assert ours.dtype == original.dtype and torch.equal(ours, original)
        assert ours.data_ptr() != original.data_ptr() or original.numel() == 0


def test_the_twin_says_what_it_needs_without_scipy(tmp_path):
    code = (
        "import sys; sys.modules['scipy'] = None; sys.modules['scipy.optimize'] = None\n"
        "from detr_fast import reference\n"
        "try: reference.linear_sum_assignment([[1.0]])\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "pip install scipy" in done.stdout


def test_boxes_whose_type_says_another_format_are_refused():
    """torchvision's transforms give such: training on pixels would fail without a word."""
    outputs = predictions(1, 5)
    plain, centred, corners = targets_of([2]), targets_of([2]), targets_of([2])
    for targets, form in ((centred, "CXCYWH"), (corners, "XYXY")):
        boxes = targets[0]["boxes"]
        targets[0]["boxes"] = tv_tensors.BoundingBoxes(boxes, format=form, canvas_size=(1, 1))
    assert_same(FastMatcher()(outputs, centred), FastMatcher()(outputs, plain))
    message = r"targets\[0\]\['boxes'\] has the format XYXY"
    with pytest.raises(ValueError, match=message):
        FastMatcher()(outputs, corners)
    with pytest.raises(ValueError, match=message):
        PackedTargets.pack(corners)


def test_boxes_whose_type_says_that_they_are_in_pixels_are_refused():
    """Whoever converts the format of an image's boxes has them in its pixels still."""
    outputs, targets = predictions(2, 5), targets_of([2, 3])
    scale = torch.tensor([640, 480] * 2)
    boxes = tv_tensors.BoundingBoxes(
        targets[1]["boxes"] * scale, format="CXCYWH", canvas_size=(480, 640)
    )
    pixels = [targets[0], {**targets[1], "boxes": boxes}]
    message = (
        r"targets\[1\]\['boxes'\] is in pixels of a canvas of 640 x 480, .* divide them by the "
        "image's width and height"
    )
    for match in (FastMatcher(), lambda _, given: PackedTargets.pack(given)):
        with pytest.raises(ValueError, match=message):
            match(outputs, pixels)
    divided = [targets[0], {**targets[1], "boxes": boxes / scale}]
    assert_same(FastMatcher()(outputs, divided), FastMatcher()(outputs, targets))
    nothing = tv_tensors.wrap(torch.empty(0, 4), like=boxes)
    PackedTargets.pack([{"labels": torch.tensor([]), "boxes": nothing}])


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes", "labels", "boxes"])
def test_each_may_be_strided_alone(name):
    outputs, targets = predictions(2, 30), targets_of([15, 9])
    matcher = FastMatcher(cost_class=9)
    expected = matcher(outputs, targets)
    for holder in [outputs, *targets]:
        if name in holder:
            holder[name] = torch.stack([holder[name], holder[name].flip(0)], -1)[..., 0]
            assert not holder[name].is_contiguous()
    assert_same(matcher(outputs, targets), expected)


@pytest.mark.parametrize("wide", ["pred_logits", "pred_boxes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_of_both_is_float64(wide, dtype):
    outputs, targets = predictions(2, 30), targets_of([4, 6])
    mixed = {**outputs, wide: outputs[wide].double()}
    other = [{**target, "boxes": target["boxes"].to(dtype)} for target in targets]
    assert_same(FastMatcher()(mixed, other), FastMatcher()(outputs, targets))


BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def in_dtype(dtype, outputs, targets):
    outputs = {key: value.to(dtype) for key, value in outputs.items()}
    return outputs, [{**target, "boxes": target["boxes"].to(dtype)} for target in targets]


@BOTH_DTYPES
def test_of_several_overflows_the_first_target_is_named(dtype):
    """Whichever query finds one first, and whatever else is wrong with a box."""
    far = torch.finfo(dtype).max * 0.6
    outputs, targets = in_dtype(dtype, predictions(1, 40), targets_of([3]))
    targets[0]["boxes"][0, 0], targets[0]["boxes"][2, 0] = far, -far
    outputs["pred_boxes"][0, 1, 0] = far  # too far from target 2
    outputs["pred_boxes"][0, 20, 0] = -far  # too far from target 0
    outputs["pred_boxes"][0, 39, 0] = far
    matcher = FastMatcher(1, 1, 1)
    message = r"matching outputs\['pred_boxes'\]\[0\] to targets\[0\]\['boxes'\]\[0\] overflows"
    with pytest.raises(ValueError, match=message):
        matcher(outputs, targets)
    outputs["pred_boxes"][0, 39, 3] = -1
    with pytest.raises(ValueError, match=r"^outputs\['pred_boxes'\]\[0, 39\] is "):
        matcher(outputs, targets)


@pytest.mark.parametrize(
    "of", ["all", "half of the queries", "half of the targets", "half of both"]
)
def test_giou_of_boxes_far_larger_than_a_picture(of):
    """The product of two areas would overflow a float."""
    outputs, targets = predictions(1, 40), targets_of([10])
    large = 2.0**45
    for boxes, name in ((outputs["pred_boxes"][0], "queries"), (targets[0]["boxes"], "targets")):
        if of == "all":
            boxes *= large
        elif name in of or of == "half of both":
            boxes[::2] *= large
    ((i, j),) = FastMatcher(1, 0, 2)(outputs, targets)
    outputs, (target,) = in_dtype(torch.float64, outputs, targets)
    cost = reference.matching_cost(
        outputs["pred_logits"][0],
        outputs["pred_boxes"][0],
        target["labels"],
        target["boxes"],
        1,
        0,
        2,
    )
    best = reference.linear_sum_assignment(cost)
    assert total(cost, (i, j)) == pytest.approx(total(cost, best), abs=1e-4)


@BOTH_DTYPES
@pytest.mark.parametrize("shift", [-1000.0, -256.0, -90.0, 84.0, 90.0, 100.0, 256.0, 1000.0])
@pytest.mark.parametrize("k", [1, 5, 20, 91])
def test_softmax_does_not_depend_on_where_the_logits_are(k, shift, dtype):
    """Even where exp of them is 0 or infinite."""
    outputs, targets = in_dtype(dtype, predictions(2, 40, k=k), targets_of([9, 5], k=k))
    outputs["pred_logits"] = (outputs["pred_logits"] * 64).round() / 64
    shifted = {**outputs, "pred_logits": outputs["pred_logits"] + shift}
    matcher = FastMatcher(10, 1, 1)
    assert_same(matcher(shifted, targets), matcher(outputs, targets))


@pytest.mark.parametrize("n", [3, 16, 40, 100])
def test_of_queries_that_cost_the_same_the_first_is_matched(n):
    outputs, targets = predictions(1, n), targets_of([1])
    for value in outputs.values():
        value[:] = value[:, :1]
    for best in range(0, n - 1, 3):
        outputs["pred_boxes"][0, :] = torch.tensor([0.1, 0.1, 0.1, 0.1])
        outputs["pred_boxes"][0, best:] = targets[0]["boxes"][0]
        assert FastMatcher()(outputs, targets)[0][0].tolist() == [best]
        outputs["pred_boxes"][0, best:] = torch.tensor([0.1, 0.1, 0.1, 0.1])
        outputs["pred_boxes"][0, [best, n - 1]] = targets[0]["boxes"][0]
        assert FastMatcher()(outputs, targets)[0][0].tolist() == [best]


def test_a_sum_of_exponentials_too_large_for_a_float():
    """Of logits that each have one: 20000 times e^79."""
    outputs, targets = predictions(1, 20, k=20_000), targets_of([5], k=20_000)
    outputs["pred_logits"] = (outputs["pred_logits"].clamp(-0.9, 0.9) * 64).round() / 64
    shifted = {**outputs, "pred_logits": outputs["pred_logits"] + 79}
    matcher = FastMatcher(1e5, 1, 1)
    assert_same(matcher(shifted, targets), matcher(outputs, targets))
