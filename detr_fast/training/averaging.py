"""The average of the weights along the training, which is what gets evaluated."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential average of weights and statistics that follows faster at the beginning."""

    def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        updates = int(updates)
        weight = 1 - min(decay, (1 + updates) / (10 + updates))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:  # counters
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True).requires_grad_(False)
