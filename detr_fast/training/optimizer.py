"""The optimizer: AdamW, and clipping by the norm of all gradients (paper, appendix A.4)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def make_optimizer(
    model: nn.Module, lr: float, lr_backbone: float, weight_decay: float
) -> FusedAdamW:
    """Return AdamW with one learning rate for the backbone and one for everything else."""
    backbone, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("backbone.0.") else rest).append(parameter)
    groups = [{"params": rest, "lr": lr}, {"params": backbone, "lr": lr_backbone}]
    return FusedAdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        weight_decay=weight_decay,
    )


class FusedAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` with the fused kernel, and no copies for channels-last weights.

    On a CPU the kernel pairs the entries of parameter, gradient and averages as they lie in memory,
    and copies what is not contiguous: up to 15 ms for each 3x3 convolution of 512 channels. Here it
    gets contiguous views of the same memory instead, all in the parameter's layout.

    To that end, this class changes the lists that ``AdamW._init_group`` fills, which is not part of
    torch's public interface. If they do not hold each parameter, its gradient and its state exactly
    once, it warns once and leaves them as they are, at the cost of those copies.
    """

    _lists_recognised = True

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, fused=True)

    def _init_group(self, group: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        trained = [p for p in group["params"] if p.grad is not None]
        on_cpu = [p for p in trained if p.is_cpu]
        for parameter in on_cpu:
            parameter.grad = _laid_out_as(parameter, parameter.grad)
            state = self.state[parameter]
            for name, value in state.items():
                state[name] = _laid_out_as(parameter, value)
        # This fills lists: of parameters, gradients, their two averages, and others.
        result = super()._init_group(group, *args, **kwargs)
        if on_cpu and self._lists_recognised:
            lists = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, list)]
            self._use_contiguous_views(trained, lists)
        return result

    def _use_contiguous_views(self, parameters: list[Tensor], lists: list[list[Tensor]]) -> None:
        """Replace what is channels-last in the lists, whatever the order of the lists."""
        of_each = [[p, p.grad, *self.state[p].values()] for p in parameters]
        expected = sorted(id(tensor) for tensors in of_each for tensor in tensors)
        if sorted(id(tensor) for entries in lists for tensor in entries) != expected:
            self._lists_recognised = False
            warnings.warn(
                f"AdamW of torch {torch.__version__} lists its tensors in a way that FusedAdamW "
                "does not recognise: channels-last weights are copied at each step: slower",
                stacklevel=2,
            )
            return
        arrays: dict[int, Tensor] = {}
        for parameter, *others in of_each:
            alike = [parameter, *(tensor for tensor in others if tensor.dim() == 4)]
            if parameter.is_cpu and all(_is_channels_last(tensor) for tensor in alike):
                arrays |= {id(tensor): _contiguous_view(tensor.detach()) for tensor in alike}
        for entries in lists:
            entries[:] = [arrays.get(id(tensor), tensor) for tensor in entries]

    @torch.no_grad()
    def clipped_step(self, clip: float) -> Tensor:
        """Run ``step`` with gradients scaled down to ``clip`` if their norm is larger; 0 = never.

        The same as ``clip_grad_norm_`` and ``step``, but the kernel scales what it reads anyway.

        Returns:
            The gradients' norm before clipping, a scalar on their device.
        """
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norm = gradient_norm([gradient for gradient in gradients if gradient is not None])
        if clip:  # torch's fused kernels divide by a float32 of this name, meant for GradScaler
            self.grad_scale = ((norm.float() + 1e-6) / clip).clamp(min=1)
        try:
            self.step()
        finally:
            self.grad_scale = None
        return norm


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients' entries together, a scalar on their device."""
    if not gradients:
        return torch.zeros(())
    if all(gradient.is_cpu and gradient.dtype == torch.float32 for gradient in gradients):
        # Half the time of torch's norm, which reads each tensor with a single thread. The last bit
        # of a dot product depends on where its vectors begin, and with it a resumed run would: the
        # gradients of several processes are views into buffers, at offsets that change.
        flat = [_aligned(_contiguous_view(gradient).reshape(-1)) for gradient in gradients]
        return torch.stack([torch.dot(x, x) for x in flat]).sum().sqrt()
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` in the parameter's layout, if it has its shape; usually it has both."""
    if value.stride() == parameter.stride() or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of it that begins where torch allocates memory."""
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def _contiguous_view(tensor: Tensor) -> Tensor:
    """Return a channels-last tensor's memory as a contiguous view; any other tensor as it is."""
    return tensor.permute(0, 2, 3, 1) if _is_channels_last(tensor) else tensor


def _is_channels_last(tensor: Tensor) -> bool:
    if tensor.dim() != 4 or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last)
