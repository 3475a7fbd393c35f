"""What is asked of a GPU, traced without one: on CUDA tensors that have shapes and no values.

A value that is read, and so a wait for the GPU, cannot be traced: it is an error.
"""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from matching_cases import predictions, targets_of
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from detr_fast import FastMatcher, PackedTargets, losses
from detr_fast.losses import SetCriterion
from detr_fast.matching import packing
from detr_fast.models import detr_resnet18

COUNTS = [5, 0, 11]

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")


@pytest.fixture(autouse=True)
def without_a_driver(monkeypatch) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setattr(packing, "_page_locked", lambda tensor: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            torch.zeros(1, device="cpu").to("cuda")
        except RuntimeError as error:  # of torch 2.8
            pytest.skip(f"this torch needs a driver for it: {str(error).splitlines()[0]}")
        yield


def on(device: str, tensors):
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), tensors)


class Watch(TorchDispatchMode):
    """Notes the names of the operations, and which of them copy between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
        self.names.append(function.name())
        if len(devices) > 1:
            self.copies.append(function.name())
        return result


def traced(function, watch: Watch | None = None):
    """The function as one graph, which runs as it was traced, under the eyes of ``watch``."""

    def backend(graph, inputs):
        def run(*args):
            with watch or contextlib.nullcontext():
                return graph(*args)

        return run

    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize("targets_on", ["cuda", "cpu"])
def test_matching(targets_on):
    layers = on("cuda", [predictions(3, 40, seed=seed) for seed in range(2)])
    targets = on(targets_on, targets_of(COUNTS))
    matches = traced(FastMatcher().match_layers)(layers, targets)
    assert [[len(query) for query, _ in images] for images in matches] == [COUNTS] * 2
    assert all(index.is_cuda for images in matches for pair in images for index in pair)
    packed = traced(FastMatcher().match_packed)(layers, targets)
    assert packed.query_index.is_cuda and packed.query_index.shape == (2, sum(COUNTS))


def test_criterion():
    last, first = on("cuda", [predictions(3, 40, seed=seed) for seed in range(2)])
    with torch.device("cuda"):
        criterion = SetCriterion(last["pred_logits"].shape[-1] - 1)
    for capacity in (None, 20):
        targets = PackedTargets.pack(targets_of(COUNTS), capacity).to("cuda")
        outputs, watch = {**last, "aux_outputs": [first]}, Watch()
        losses = traced(criterion, watch)(outputs, targets)
        assert all(loss.is_cuda and loss.shape == () for loss in losses.values())
        assert "detr_fast::match" in watch.names and not watch.copies
        watch = Watch()
        *sums, matches = traced(criterion.sums, watch)(outputs, targets)
        assert all(part.is_cuda and part.shape == (3, 2) for part in sums)
        assert matches.query_index.is_cuda and len(matches.query_index) == 2
        assert "detr_fast::match" in watch.names and not watch.copies


def test_boxes_are_looked_at_on_the_cpu_alone():
    """Where a read would be an error, it is not traced but run."""
    targets = on("cuda", targets_of(COUNTS))
    losses._check_normalised(PackedTargets.pack(targets))
    with pytest.raises(DataDependentOutputException):
        losses._check_normalised(PackedTargets.pack(on("cpu", targets)))


@pytest.mark.parametrize("padded", [False, True])
def test_model(padded):
    with torch.device("cuda"):
        model = detr_resnet18(num_classes=5, num_queries=20).train()
        images = torch.rand(2, 3, 96, 64)
        mask = torch.zeros(2, 96, 64, dtype=torch.bool) if padded else None
    with Watch() as watch:
        outputs = model(images, mask)
    assert outputs["pred_logits"].is_cuda and not watch.copies


def test_a_read_is_an_error():
    with pytest.raises(DataDependentOutputException):
        torch.zeros(3, device="cuda").sum().item()
