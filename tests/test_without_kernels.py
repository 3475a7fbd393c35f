"""CUDA tensors in a build without CUDA kernels: computed on copies, and a warning says so once."""

import warnings

import pytest
import torch
from devices import OnGpu
from matching_cases import assert_same, predictions, targets_of

from detr_fast import _C, FastMatcher, linear_sum_assignment
from detr_fast.matching.placed import read_layers, read_targets
from detr_fast.matching.traced import _kernel
from detr_fast.ops import library, pairwise


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch):
    monkeypatch.setattr(_C, "cuda_version", None)
    monkeypatch.setattr(_C, "cuda_reason", "nvcc was not found")
    monkeypatch.delattr(_C, "cuda", raising=False)
    library.warn_cpu_fallback.cache_clear()
    yield
    library.warn_cpu_fallback.cache_clear()


def away(values):
    return {name: tensor.as_subclass(OnGpu) for name, tensor in values.items()}


def sample(sizes=(4, 0, 25)):
    layers = [predictions(len(sizes), 20, seed=seed) for seed in range(2)]
    return layers, targets_of(sizes)


@pytest.mark.parametrize("index_device", [None, "cpu"])
def test_matching_is_the_cpus(index_device):
    layers, targets = sample()
    matcher = FastMatcher(index_device=index_device)
    with pytest.warns(UserWarning, match=r"built without its CUDA kernels.*nvcc was not found"):
        found = matcher.match_layers(list(map(away, layers)), list(map(away, targets)))
    for ours, expected in zip(found, FastMatcher().match_layers(layers, targets), strict=True):
        assert_same(ours, expected)


def test_it_warns_once():
    layers, targets = sample()
    with pytest.warns(UserWarning, match="CUDA kernels"):
        FastMatcher().match_packed(list(map(away, layers)), targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = FastMatcher().match_packed(list(map(away, layers)), targets)
    expected = FastMatcher().match_packed(layers, targets)
    assert torch.equal(found.query_index, expected.query_index)


def test_the_traced_operator_is_the_cpus():
    layers, targets = sample()
    logits, boxes = read_layers(layers)
    given = read_targets(targets, 3, torch.device("cpu"))
    logits = [t.as_subclass(OnGpu) for t in logits]
    cost = [1, 5, 2, 0.25, 2.0, 1e-8, 0, 0]
    with pytest.warns(UserWarning, match="CUDA kernels"):
        query_index, pairs = library.cpu_fallback(_kernel)(
            logits,
            boxes,
            given.labels,
            given.boxes,
            None,
            given.counts,
            given.most,
            cost,
            False,
            False,
        )
    assert torch.equal(query_index, FastMatcher().match_packed(layers, targets).query_index)
    assert len(pairs) == 2 * 2 * (4 + 20)


@pytest.mark.parametrize("form", [lambda cost: cost, lambda cost: [cost, cost]])
def test_assignment_is_the_cpus(form):
    cost = torch.rand(5, 9)
    with pytest.warns(UserWarning, match="CUDA kernels"):
        found = linear_sum_assignment(form(cost.as_subclass(OnGpu)))
    expected = linear_sum_assignment(cost)
    for rows, cols in found if isinstance(found, list) else [found]:
        assert torch.equal(rows, expected[0]) and torch.equal(cols, expected[1])


def test_every_operator_has_a_form_for_every_device():
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("detr_fast::")]
    assert {"detr_fast::match", "detr_fast::pairwise_iou", "detr_fast::box_losses"} <= {*names}
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    for name in names:
        for device in ("CPU", "CUDA", "MPS", "XPU"):
            assert has_kernel(name, device), (name, device)


def test_ops_are_the_cpus():
    boxes = torch.rand(3, 4).sort(-1).values
    with pytest.warns(UserWarning, match="CUDA kernels"):
        found = library.cpu_fallback(pairwise._forward)(boxes.as_subclass(OnGpu), boxes, "xyxy", 0)
    assert torch.equal(found, pairwise._forward(boxes, boxes, "xyxy", False))
