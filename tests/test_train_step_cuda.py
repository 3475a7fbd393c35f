"""The training step on a GPU: no wait, and the same steps as a CUDA graph."""

import copy

import pytest
import torch
from devices import needs_cuda

from detr_fast import PackedTargets, check_faults
from detr_fast.losses import SetCriterion
from detr_fast.models import detr_tiny
from detr_fast.training.graph import GraphedStep, ShapeMismatch
from detr_fast.training.optimizer import make_optimizer
from detr_fast.training.step import TrainStep

pytestmark = needs_cuda
CAPACITY = 8


def step_of(model) -> TrainStep:
    device = torch.device("cuda", 0)
    optimizer = make_optimizer(model, 1e-3, 1e-3, 1e-4)
    return TrainStep(model, SetCriterion(5).to(device), optimizer, device, clip=0.1)


def batch(seed: int, size: int = 64) -> tuple:
    g = torch.Generator().manual_seed(seed)
    targets = [
        {
            "labels": torch.randint(0, 5, (m,), generator=g),
            "boxes": 0.25 + 0.25 * torch.rand(m, 4, generator=g),
        }
        for m in (seed % 4, 3)
    ]
    images = torch.randn(2, 3, size, size, generator=g).pin_memory()
    return images, None, PackedTargets.pack(targets, CAPACITY).pin_memory()


def test_cuda_step_does_not_wait() -> None:
    step = step_of(detr_tiny(5, 10).cuda())
    for seed in range(3):
        step([batch(seed)])
    batches = [batch(seed) for seed in range(3, 6)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in batches:
            losses = step([each])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(losses["loss"])
    check_faults()


def test_cuda_graph_trains_as_eager_steps_do() -> None:
    torch.manual_seed(0)
    model = detr_tiny(5, 10).cuda()
    eager = step_of(copy.deepcopy(model))
    graphed = GraphedStep(step_of(model), CAPACITY)
    for seed in range(10):
        for step in (eager, graphed.step):
            for group in step.optimizer.param_groups:  # as a scheduler changes it
                rate = 1e-3 / (1 + seed)
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        expected, found = eager([batch(seed)])["loss"], graphed(batch(seed))["loss"]
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert graphed._graph is not None
    with pytest.raises(ShapeMismatch, match="images are"):
        graphed(batch(0, size=96))
    images, _, targets = batch(0)
    with pytest.raises(ShapeMismatch, match="padded"):
        graphed((images, torch.zeros(2, 64, 64, dtype=torch.bool), targets))
    check_faults()
