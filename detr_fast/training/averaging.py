"""The average of the weights along the training, which is what gets evaluated."""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential average of weights and statistics that follows faster at the beginning.

    Unlike torch's ``AveragedModel`` it counts its updates on the host, so that nothing is read back
    from a GPU.

    Args:
        model: what is averaged.
        decay: share of the average that an update keeps, in the long run.

    Attributes:
        module: the model with the averaged weights; before the first update those of ``model``.
        updates: how many there were.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present weights and statistics; its counters are copied."""
        averages, counters = _tensors(self.module)
        values, counts = _tensors(model)
        if self.updates:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:
            torch._foreach_copy_(averages, values)
        if counters:
            torch._foreach_copy_(counters, counts)
        self.updates += 1


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """A module's weights and statistics, and its counters."""
    tensors = [*module.parameters(), *module.buffers()]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floating, [tensor for tensor in tensors if not tensor.is_floating_point()]
