"""FastMatcher inside torch.compile, as an operator."""

import pytest
import torch
from matching_cases import assert_same, predictions, targets_of
from torch._dynamo.testing import CompileCounter

from detr_fast import FastMatcher, PackedTargets, faults
from detr_fast.matching import traced
from detr_fast.matching.placed import read_layers, read_targets


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def sample(sizes=(4, 0, 25), n=20, layers=2):
    return [predictions(len(sizes), n, seed=seed) for seed in range(layers)], targets_of(sizes)


@pytest.mark.parametrize("options", [{}, {"class_cost": "focal", "giou_guard": "eps"}])
def test_compiled_without_a_graph_break(options) -> None:
    layers, targets = sample()
    matcher = FastMatcher(**options)
    compiled = torch.compile(matcher.match_layers, fullgraph=True, backend="aot_eager")
    for expected, found in zip(
        matcher.match_layers(layers, targets), compiled(layers, targets), strict=True
    ):
        for (i, j), (i2, j2) in zip(expected, found, strict=True):
            assert torch.equal(i, i2) and torch.equal(j, j2)


def test_float64_is_compared_in_float64() -> None:
    """Costs that float32 cannot tell apart."""
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]], dtype=torch.float64)
    boxes[0, 0, 0] += 1e-12
    layer = {"pred_logits": torch.zeros(1, 2, 3, dtype=torch.float64), "pred_boxes": boxes}
    target = {"labels": torch.tensor([0]), "boxes": boxes[0, 1:].clone()}
    matcher = FastMatcher()
    compiled = torch.compile(matcher.match_layers, fullgraph=True, backend="aot_eager")
    for match in (matcher.match_layers, compiled):
        assert match([layer], [target])[0][0][0].tolist() == [1]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_jit_traces_the_operator() -> None:
    """For other predictions and the same targets."""
    (first, other), targets = sample()

    def match(logits, boxes):
        pairs = FastMatcher()({"pred_logits": logits, "pred_boxes": boxes}, targets)
        return torch.cat([torch.stack(pair) for pair in pairs], 1)

    traced = torch.jit.trace(match, tuple(first.values()))
    for layer in (first, other):
        assert torch.equal(traced(*layer.values()), match(*layer.values()))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_jit_is_for_the_numbers_of_targets_it_saw() -> None:
    (layer,), (target,) = sample((4,), layers=1)

    def match(labels, boxes):
        return FastMatcher()(layer, [{"labels": labels, "boxes": boxes}])[0][0]

    traced = torch.jit.trace(match, tuple(target.values()))
    (other,) = targets_of([5])
    with pytest.raises(Exception, match="5 targets, but the matching was traced for images with"):
        traced(*other.values())


def test_numbers_of_targets_do_not_recompile_for_ever() -> None:
    """Not even of targets packed without a capacity, of which there may be more than queries."""
    matcher, counter = FastMatcher(), CompileCounter()
    compiled = torch.compile(matcher.match_packed, fullgraph=True, backend=counter)
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        sizes = torch.randint(0, 9, (6,), generator=generator).tolist()
        layers = [predictions(6, 5, seed=seed)]
        packed = PackedTargets.pack(targets_of(sizes, seed=seed))
        found = compiled(layers, packed).query_index
        assert torch.equal(found, matcher.match_packed(layers, packed).query_index)
    assert counter.frame_count <= 3


def test_sizes_do_not_recompile_for_ever() -> None:
    matcher, counter = FastMatcher(), CompileCounter()
    compiled = torch.compile(matcher.match_packed, fullgraph=True, dynamic=True, backend=counter)
    for seed, sizes in enumerate([(3, 2), (5, 7), (2, 9), (8, 3), (4, 6)]):
        layers = [predictions(2, 20, seed=seed)]
        packed = PackedTargets.pack(targets_of(sizes, seed=seed), capacity=20)
        found = compiled(layers, packed).query_index
        assert torch.equal(found, matcher.match_packed(layers, packed).query_index)
    assert counter.frame_count == 1


def test_lists_of_other_lengths_are_matched_by_the_same_code() -> None:
    matcher = FastMatcher()
    compiled = torch.compile(matcher.match_layers, fullgraph=True, backend="eager")
    layers = [predictions(2, 20, seed=seed) for seed in range(2)]
    for sizes in ((3, 1), (2, 5), (0, 4), (25, 7), (0, 0)):
        targets = targets_of(sizes)
        expected = matcher.match_layers(layers, targets)
        for ours, theirs in zip(compiled(layers, targets), expected, strict=True):
            assert_same(ours, theirs)


def test_bad_values_are_named() -> None:
    layers, targets = sample()
    targets[2]["labels"][5] = 77
    compiled = torch.compile(FastMatcher().match_layers, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"targets\[2\]\['labels'\]\[5\] is 77"):
        compiled(layers, targets)


@pytest.mark.parametrize("options", [{"index_device": "cpu"}, {"validate": "sync"}])
def test_traced_calls_leave_the_faults_of_a_gpu_alone(monkeypatch, options) -> None:
    """Reading them cannot be traced, and they are not this call's."""
    layers, targets = sample()
    monkeypatch.setattr(faults, "_slots", {})
    slots = faults.fault_slots(torch.device("cpu"), layers=1, images=4)
    slots._numbers[:] = 1 << 56
    compiled = torch.compile(FastMatcher(**options).match_layers, fullgraph=True, backend="eager")
    found = compiled(layers, targets)
    for expected, pairs in zip(FastMatcher().match_layers(layers, targets), found, strict=True):
        assert_same(pairs, expected)


@pytest.mark.parametrize("capacity", [None, 40])
def test_the_operator_is_registered_right(capacity) -> None:
    layers, targets = sample()
    logits, boxes = read_layers(layers)
    given = read_targets(PackedTargets.pack(targets, capacity), 3, torch.device("cpu"))
    matcher = FastMatcher()
    called = []
    operator = torch.ops.detr_fast.match

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append((function, args))
            return function(*args, **(kwargs or {}))

    with Record():
        pairs = given.counts is not None
        traced.match(logits, boxes, given, matcher._options(), pairs)
    ((function, args),) = [(f, a) for f, a in called if f is operator.default]
    torch.library.opcheck(function, args)
