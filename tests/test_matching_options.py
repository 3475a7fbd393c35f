"""FastMatcher's options against the twin: focal cost, guarded GIoU, non-finite costs, SIMD."""

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from matching_cases import K, assert_same, predictions, targets_of

import detr_fast
from detr_fast import _C, FastMatcher, reference

HERE = os.path.dirname(__file__)
PACKAGE = os.path.dirname(os.path.dirname(detr_fast.__file__))  # the same in subprocesses


def in_double(items):
    return [{k: v.double() if v.is_floating_point() else v for k, v in i.items()} for i in items]


OPTIONS = [
    {"class_cost": "focal"},
    {"class_cost": "focal", "focal_alpha": 0.6, "focal_gamma": 1.5, "focal_eps": 1e-5},
    {"class_cost": "focal", "focal_gamma": 0.0},
    {"giou_guard": "eps", "giou_eps": 1e-2},
    {"giou_guard": "clamp", "giou_eps": 1e-1},
    {"class_cost": "focal", "giou_guard": "eps"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_options_equal_the_twin(options, dtype):
    for seed in range(20):
        outputs = predictions(3, 50, seed=seed, scale=4)
        targets = targets_of([9, 0, 60], seed=seed)
        outputs = {key: value.to(dtype) for key, value in outputs.items()}
        twin = reference.HungarianMatcher(2, 5, 2, **options)
        expected = twin(*in_double([outputs]), in_double(targets))
        assert_same(FastMatcher(2, 5, 2, **options)(outputs, targets), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_change_the_match(options):
    """Otherwise the comparison above would prove nothing."""
    differs = 0
    for seed in range(20):
        outputs, targets = predictions(1, 50, seed=seed, scale=4), targets_of([60], seed=seed)
        plain = FastMatcher(2, 5, 2)(outputs, targets)
        ours = FastMatcher(2, 5, 2, **options)(outputs, targets)
        differs += ours[0][0].tolist() != plain[0][0].tolist() or (
            ours[0][1].tolist() != plain[0][1].tolist()
        )
    assert differs > 2


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
def test_focal_costs_are_accurate_to_float32(gamma):
    """Two queries per image, whose costs differ by a few millionths."""
    g = torch.Generator().manual_seed(0)
    options = {"class_cost": "focal", "focal_gamma": gamma}
    b = 4000
    low = 6 * torch.randn(b, generator=g)
    logits = torch.stack([low, low + 1e-4 * torch.randn(b, generator=g)], 1)[..., None]
    box = torch.full((1, 4), 0.5, dtype=torch.float64)
    cost = torch.stack(
        [
            reference.matching_cost(
                pair.double(), box.expand(2, 4), torch.tensor([0]), box, 1, 0, 0, **options
            )[:, 0]
            for pair in logits
        ]
    )
    told_apart = (cost[:, 0] - cost[:, 1]).abs() > 3e-6 * cost.abs().amax(1)
    assert told_apart.sum() > 1000
    outputs = {"pred_logits": logits, "pred_boxes": torch.full((b, 2, 4), 0.5)}
    target = {"labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5)}
    winner = torch.cat([i for i, _ in FastMatcher(1, 0, 0, **options)(outputs, [target] * b)])
    assert torch.equal(winner[told_apart], cost.argmin(1)[told_apart])


def test_focal_labels_use_every_logit():
    outputs, targets = predictions(1, 10), targets_of([3])
    targets[0]["labels"][1] = K
    FastMatcher(class_cost="focal")(outputs, targets)
    targets[0]["labels"][1] = K + 1
    with pytest.raises(
        ValueError, match=r"^targets\[0\]\['labels'\]\[1\] is 6, but .* \(0\.\.5\)$"
    ):
        FastMatcher(class_cost="focal")(outputs, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_with_infinite_and_nan_logits(dtype):
    outputs, targets = predictions(1, 20), targets_of([5])
    outputs = {key: value.to(dtype) for key, value in outputs.items()}
    targets = in_double(targets) if dtype == torch.float64 else targets
    label = targets[0]["labels"][2]
    outputs["pred_logits"][0, 3, label] = torch.inf  # certain of it
    outputs["pred_logits"][0, 4, label] = -torch.inf
    twin = reference.HungarianMatcher(5, 5, 2, class_cost="focal")
    matcher = FastMatcher(5, 5, 2, class_cost="focal")
    assert_same(matcher(outputs, targets), twin(outputs, targets))
    outputs["pred_logits"][0, 6, label] = torch.nan
    message = r"^outputs\['pred_logits'\]\[0, 6\] has no focal cost: it holds NaN$"
    with pytest.raises(ValueError, match=message):
        matcher(outputs, targets)


def spoil(outputs, kind, queries):
    if kind == "nan logits":
        outputs["pred_logits"][0, queries, 2] = torch.nan
    elif kind == "inf logits":
        outputs["pred_logits"][0, queries, 0] = torch.inf
    elif kind == "nan box":
        outputs["pred_boxes"][0, queries, 1] = torch.nan
    elif kind == "inf box":
        outputs["pred_boxes"][0, queries, 3] = torch.inf
    else:
        outputs["pred_boxes"][0, queries, 2] = -0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [[6], [18], [25], [40]])
@pytest.mark.parametrize(
    "kind", ["nan logits", "inf logits", "nan box", "inf box", "negative width"]
)
def test_nonfinite_last_takes_what_is_finite_first(kind, sizes, dtype):
    """30 queries, of which 9 have no cost."""
    queries = list(range(1, 28, 3))
    for seed in range(5):
        outputs, targets = predictions(1, 30, seed=seed), targets_of(sizes, seed=seed)
        spoil(outputs, kind, queries)
        outputs = {key: value.to(dtype) for key, value in outputs.items()}
        with pytest.raises(ValueError, match=r"^outputs\['pred_(logits|boxes)'\]\[0, 1\] "):
            FastMatcher()(outputs, targets)
        ((i, j),) = FastMatcher(nonfinite="last")(outputs, targets)
        spoilt = len(set(queries) & set(i.tolist()))
        assert len(i) == min(30, sizes[0]) and spoilt == max(0, len(i) - 21)
        twin = reference.HungarianMatcher(nonfinite="last")
        ((twin_i, twin_j),) = twin(outputs, in_double(targets) if dtype.itemsize == 8 else targets)
        # Among the queries without a cost any choice is as good.
        ours, twins = (
            {(a, b) for a, b in zip(i.tolist(), j.tolist(), strict=True) if a not in queries}
            for i, j in ((i, j), (twin_i, twin_j))
        )
        assert ours == twins if spoilt == 0 else len(ours) == len(twins)


def test_nonfinite_last_with_nothing_finite_still_matches():
    outputs, targets = predictions(2, 10), targets_of([4, 12])
    outputs["pred_logits"].fill_(torch.nan)
    matches = FastMatcher(nonfinite="last")(outputs, targets)
    assert [len(i) for i, _ in matches] == [4, 10]
    for i, j in matches:
        assert len(set(i.tolist())) == len(set(j.tolist())) == len(i)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_focal_cost_only_pairs_with_nan_logits_come_last(dtype):
    logits = torch.tensor([[[torch.nan, 5.0], [0.0, torch.nan]]], dtype=dtype)
    outputs = {"pred_logits": logits, "pred_boxes": torch.full((1, 2, 4), 0.5, dtype=dtype)}
    targets = [{"labels": torch.tensor([0, 1]), "boxes": torch.full((2, 4), 0.5)}]
    options = {"class_cost": "focal", "nonfinite": "last"}
    ((i, j),) = FastMatcher(**options)(outputs, targets)
    assert (i.tolist(), j.tolist()) == ([0, 1], [1, 0])
    outputs, targets = predictions(4, 20), targets_of([9, 0, 30, 3], k=K + 1)
    spoilt = torch.rand(4, 20, K + 1, generator=torch.Generator().manual_seed(1)) < 0.3
    outputs["pred_logits"][spoilt] = torch.nan
    outputs = {key: value.to(dtype) for key, value in outputs.items()}
    given = in_double(targets) if dtype == torch.float64 else targets
    lost = [
        sum(
            int(outputs["pred_logits"][b, i, targets[b]["labels"][j]].isnan().sum())
            for b, (i, j) in enumerate(matcher(**options)(outputs, given))
        )
        for matcher in (FastMatcher, reference.HungarianMatcher)
    ]
    assert lost[0] == lost[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_last_is_behind_costs_of_any_size(dtype):
    """Adding 1 to them may change nothing."""
    far = 4e6 if dtype == torch.float32 else 1e17
    outputs = {
        "pred_logits": torch.tensor([[[torch.nan, 0.0], [0.0, 0.0]]], dtype=dtype),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.1, 0.1], [far, far, 10, 10]]], dtype=dtype),
    }
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[10.0, 10, 5, 5]])}]
    ((i, _),) = FastMatcher(nonfinite="last")(outputs, targets)
    assert i.tolist() == [1]


def test_nonfinite_last_changes_nothing_where_all_is_finite():
    outputs, targets = predictions(3, 40), targets_of([5, 0, 50])
    assert_same(FastMatcher(nonfinite="last")(outputs, targets), FastMatcher()(outputs, targets))


def test_nonfinite_last_still_refuses_bad_targets():
    outputs, targets = predictions(1, 10), targets_of([4])
    targets[0]["boxes"][2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^targets\[0\]\['boxes'\]\[2\] is \[nan"):
        FastMatcher(nonfinite="last")(outputs, targets)


OPTION_ERRORS = pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_cost": "bce"}, "class_cost is 'bce', but must be one of softmax, focal"),
        ({"giou_guard": "max"}, "giou_guard is 'max', but must be one of none, eps, clamp"),
        ({"nonfinite": "skip"}, "nonfinite is 'skip', but must be one of raise, last"),
        ({"focal_alpha": 1.5}, "focal_alpha is 1.5, but must be in 0..1"),
        ({"focal_gamma": -1}, "focal_gamma is -1, but must be finite and not negative"),
        ({"focal_eps": 0}, "focal_eps is 0, but must be in 1e-30..1"),
        ({"giou_eps": float("nan")}, "giou_eps is nan, but must be in 1e-30..1"),
        ({"focal_alpha": "0.25"}, "focal_alpha is '0.25', but must be a number"),
        ({"focal_eps": np.float16(2)}, "focal_eps is 2.0, but must be in 1e-30..1"),
        ({"cost_giou": np.float16("inf")}, "cost_giou is inf, but must be in +-1e+28"),
        ({"giou_eps": None}, "giou_eps is None, but must be a number"),
        ({"validate": "never"}, "validate is 'never', but must be one of deferred, sync"),
    ],
)


@OPTION_ERRORS
def test_option_errors(arguments, message):
    with pytest.raises(ValueError) as raised:
        FastMatcher(**arguments)
    assert str(raised.value) == message


def test_limits_are_not_rounded_to_the_numbers_precision():
    with pytest.raises(ValueError, match=r"focal_eps is 0\.0, but must be in 1e-30"):
        FastMatcher(focal_eps=np.float16(0))


@pytest.mark.parametrize("number", [np.float16(2), np.int64(2), Fraction(2), torch.tensor(2.0)])
def test_numbers_of_any_kind(number):
    given = predictions(1, 10, K + 1), targets_of([4])
    (found,), (expected,) = (FastMatcher(n, giou_guard="eps")(*given) for n in (number, 2))
    assert torch.equal(torch.stack(found), torch.stack(expected))


@OPTION_ERRORS
def test_options_changed_later_are_checked_by_the_next_call(arguments, message):
    matcher, given = FastMatcher(), (predictions(1, 10), targets_of([4]))
    matcher(*given)
    for name, value in arguments.items():
        setattr(matcher, name, value)
    for _ in range(2):
        with pytest.raises(ValueError) as raised:
            matcher(*given)
        assert str(raised.value) == message


def test_repr_names_options_that_are_not_the_default():
    matcher = FastMatcher(2, class_cost="focal", focal_gamma=1.0)
    expected = "cost_class=2, cost_bbox=5, cost_giou=2, class_cost='focal', focal_gamma=1.0"
    assert repr(matcher) == f"FastMatcher({expected})"


# Prints matches of random, of nearly identical and of half-precision predictions.
PROGRAM = """
import torch
from detr_fast import FastMatcher, _C
print(_C.simd())
g = torch.Generator().manual_seed(0)
sizes = ((1, 1, 1, 1), (5, 3, 2, 1), (37, 21, 60, 1), (100, 92, 20, 1), (90, 8, 40, 0.01))
for n, c, m, spread in sizes:
    targets = [{"labels": torch.randint(0, max(1, c - 1), (m,), generator=g),
                "boxes": 0.05 + 0.9 * torch.rand(m, 4, generator=g)} for _ in range(3)]
    logits = 3 * spread * torch.randn(3, n, c, generator=g)
    boxes = 0.5 + spread * (0.9 * torch.rand(3, n, 4, generator=g) - 0.45)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for options in ({}, {"class_cost": "focal"}, {"nonfinite": "last"}):
            if c == 1 and not options.get("class_cost"):
                continue
            outputs = {"pred_logits": logits.to(dtype), "pred_boxes": boxes.to(dtype)}
            for i, j in FastMatcher(**options)(outputs, targets):
                print(i.tolist(), j.tolist())
"""


@pytest.mark.parametrize("simd", ["plain", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_matches(simd):
    """As far as this CPU goes: what it cannot run falls back to the next best."""

    def run(**environment):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": PACKAGE, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split("\n", 1)

    used, matches = run(DETR_FAST_SIMD=simd)
    if _C.simd() == "avx512":
        assert used == simd
    assert matches == run()[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(dtype):
    """Every finite value, denormals included, against the same values widened by torch."""
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    values = values[values.float().abs() < 60]
    logits = torch.stack([values, values.flip(0)], 1)[: len(values) // 64 * 64].view(1, -1, 64)
    boxes = torch.full((1, logits.shape[1], 4), 0.5)
    targets = [{"labels": torch.arange(63), "boxes": torch.full((63, 4), 0.5)}]
    matcher = FastMatcher(1, 0, 0)
    halves = matcher({"pred_logits": logits, "pred_boxes": boxes}, targets)
    assert_same(halves, matcher({"pred_logits": logits.float(), "pred_boxes": boxes}, targets))


BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@BOTH_DTYPES
@pytest.mark.parametrize("size", [6, 25, 30, 40])
def test_nonfinite_last_takes_a_cost_that_overflows_last(size, dtype):
    """Of finite boxes: 30 queries, of which 4 have none that fits into the type."""
    outputs, targets = predictions(1, 30), targets_of([size])
    outputs = {key: value.to(dtype) for key, value in outputs.items()}
    queries = [1, 8, 22, 29]
    outputs["pred_boxes"][0, queries, 2:] = torch.finfo(dtype).max ** 0.75
    given = in_double(targets) if dtype == torch.float64 else targets
    with pytest.raises(ValueError, match="overflows"):
        FastMatcher()(outputs, given)
    ((i, j),) = FastMatcher(nonfinite="last")(outputs, given)
    assert len(i) == len(set(j.tolist())) == min(30, size)
    assert len(set(queries) & set(i.tolist())) == max(0, len(i) - 26)


@BOTH_DTYPES
def test_nonfinite_last_outweighs_what_several_other_pairs_save(dtype):
    """With the pair of query 2 and target 0 the two others would cost 0 instead of 4 each."""
    near, far = [0.1, 0.5, 0.1, 0.1], [0.9, 0.5, 0.1, 0.1]
    logits = torch.zeros(1, 3, 3, dtype=dtype)
    for query, label in ((0, 2), (1, 0), (2, 0), (2, 1)):
        logits[0, query, label] = torch.nan
    outputs = {
        "pred_logits": logits,
        "pred_boxes": torch.tensor([[near, far, near]], dtype=dtype),
    }
    targets = [
        {"labels": torch.arange(3), "boxes": torch.tensor([far, near, far], dtype=dtype)},
    ]
    options = {"class_cost": "focal", "nonfinite": "last"}
    for matcher in (
        FastMatcher(1, 5, 0, **options),
        reference.HungarianMatcher(1, 5, 0, **options),
    ):
        ((i, j),) = matcher(outputs, targets)
        assert (i.tolist(), j.tolist()) == ([0, 1, 2], [0, 1, 2])


@BOTH_DTYPES
def test_nonfinite_last_behind_the_largest_costs(dtype):
    """A number beyond them all would be infinite."""
    far = torch.finfo(dtype).max * 0.5
    outputs = {
        "pred_logits": torch.tensor([[[torch.nan, 0.0], [0.0, 0.0]]], dtype=dtype),
        "pred_boxes": torch.tensor([[[0.5] * 4, [far, 0.5, 0.5, 0.5]]], dtype=dtype),
    }
    targets = [
        {
            "labels": torch.zeros(2, dtype=torch.int64),
            "boxes": torch.tensor([[0.5] * 4, [far, 0.5, 0.5, 0.5]], dtype=dtype),
        }
    ]
    ((i, j),) = FastMatcher(1, 1, 0, nonfinite="last")(outputs, targets)
    assert (i.tolist(), j.tolist()) == ([0, 1], [0, 1])


@BOTH_DTYPES
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_a_nan_logit_has_no_focal_cost_with_any_gamma(gamma, dtype):
    outputs, targets = predictions(1, 30), targets_of([20])
    targets[0]["labels"][:] = 3
    outputs["pred_logits"][0, ::3, 3] = torch.nan
    outputs = {key: value.to(dtype) for key, value in outputs.items()}
    options = {"class_cost": "focal", "focal_gamma": gamma}
    with pytest.raises(ValueError, match=r"\[0, 0\] has no focal cost"):
        FastMatcher(9, 0, 1, **options)(outputs, targets)
    for weight in (9, -9):
        ((i, _),) = FastMatcher(weight, 0, 1, **options, nonfinite="last")(outputs, targets)
        assert not set(i.tolist()) & set(range(0, 30, 3))
