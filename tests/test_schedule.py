"""Learning rates over a run, and per group of parameters."""

import math

import pytest
import torch
from torch import nn

from detr_fast.models import detr_resnet18
from detr_fast.training.optimizer import make_optimizer
from detr_fast.training.schedule import make_scheduler


def rates_of(total: int = 100, **options) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer, total_steps=total, **options)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_step():
    rates = rates_of(schedule="step", warmup_steps=4, lr_drop=0.8)
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[79] == 1.0 and rates[80] == pytest.approx(0.1)


def test_cosine():
    rates = rates_of(schedule="cosine", warmup_steps=0, lr_drop=1.0)
    assert rates[50] == pytest.approx(0.5)
    assert rates[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[-1] < 0.001


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="schedule is 'cosin', expected one of step, cosine"):
        rates_of(schedule="cosin", warmup_steps=0, lr_drop=1.0)


def test_warm_up_never_fills_a_short_run():
    assert rates_of(20, schedule="step", warmup_steps=200, lr_drop=1.0)[2:] == [1.0] * 18


def test_backbone_rate():
    model = detr_resnet18(num_classes=2, num_queries=3)
    rest, backbone = make_optimizer(model, 1e-4, 1e-5, 1e-4).param_groups
    assert (rest["lr"], backbone["lr"]) == (1e-4, 1e-5)
    assert len(backbone["params"]) == len(list(model.backbone[0].parameters()))
    frozen = detr_resnet18(num_classes=2, num_queries=3, trainable_layers=0)
    assert len(make_optimizer(frozen, 1e-4, 1e-5, 1e-4).param_groups) == 1
    assert rest["weight_decay"] == backbone["weight_decay"] == 1e-4


def test_cosine_begins_after_the_warm_up():
    rates = rates_of(schedule="cosine", warmup_steps=10, lr_drop=1.0)
    assert rates[9] == rates[10] == 1.0 and rates[55] == pytest.approx(0.5)


def test_a_learned_position_encoding_is_not_of_the_backbone():
    model = detr_resnet18(num_classes=2, num_queries=3, position_encoding="learned")
    _, backbone = make_optimizer(model, 1e-4, 1e-5, 1e-4).param_groups
    assert len(backbone["params"]) == len(list(model.backbone[0].parameters()))
