"""The running average of the weights during training, which is the model evaluated."""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential average of weights and statistics that adapts faster at the beginning.

    Unlike torch's ``AveragedModel`` it counts its updates on the host, so that nothing is read back
    from a GPU.

    Args:
        model: the model to average.
        decay: share of the old average that an update keeps; less in the first updates.

    Attributes:
        module: the model with the averaged weights; before the first update, a copy of ``model``.
        updates: how many there have been.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the model's current weights and statistics to the average; copy its counters."""
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
    """Return a module's weights and statistics, and its counters."""
    tensors = [*module.parameters(), *module.buffers()]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floating, [tensor for tensor in tensors if not tensor.is_floating_point()]
