"""Dropout on the CPU without a mask: a seed and an element's place decide if it is dropped.

torch draws one random number per element, one after the other, writes them to memory as a mask and
reads them back; on a CPU that takes a tenth to a fifth of DETR's training step. Here the numbers
are computed in vector registers where they are used, and again in the backward pass.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from detr_fast import _C
from detr_fast.ops.library import register

_STEPS = 1 << 16  # probabilities are rounded to a multiple of 1 / _STEPS


def dropout(
    x: Tensor,
    p: float,
    training: bool,
    relu: bool = False,  # apply it to max(x, 0)
) -> Tensor:
    """Return ``F.dropout(x, p, training)``, from other random numbers for some CPU tensors.

    Those are float32 and bfloat16 tensors: for them p is rounded to a multiple of 2^-16, and the
    expectation is exactly x. The seed is drawn from torch's default generator, so that
    ``torch.manual_seed`` and saved generator states reproduce the result, which does not depend on
    the number of threads.
    """
    if not training or p == 0:
        return F.relu(x) if relu else x
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or p >= 1:
        return F.dropout(F.relu(x) if relu else x, p, training)
    seed = torch.randint(-(1 << 63), (1 << 63) - 1, (1,), dtype=torch.int64, device="cpu")
    if torch.compiler.is_compiling():
        return _relu_dropout(x, seed, p) if relu else _dropout(x, seed, p)
    return _Dropout.apply(x, seed, p, relu)


class _Dropout(torch.autograd.Function):
    """Both ops for eager calls, with less overhead than the registered ops."""

    @staticmethod
    def forward(ctx, x: Tensor, seed: Tensor, p: float, relu: bool) -> Tensor:
        out = _run(x, seed, p, relu)
        ctx.p, ctx.relu = p, relu
        ctx.save_for_backward(out if relu else seed)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        (saved,) = ctx.saved_tensors
        if ctx.relu:
            return _relu_gradient(gradient, saved, ctx.p), None, None, None
        return _run(gradient, saved, ctx.p, relu=False), None, None, None


def _threshold(p: float) -> tuple[int, float]:
    """Return how many of 2^16 elements are dropped, and the scale of the others."""
    dropped = min(round(p * _STEPS), _STEPS - 1)
    return dropped, _STEPS / (_STEPS - dropped)


def _check(name: str, x: Tensor, p: float) -> None:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"{name} is {x.dtype} on {x.device}, expected float32 or bfloat16 on the CPU"
        )
    if not 0 <= p < 1:
        raise ValueError(f"p is {p}, expected 0 <= p < 1")


def _run(x: Tensor, seed: Tensor, p: float, relu: bool) -> Tensor:
    _check("x", x, p)
    if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device.type != "cpu":
        raise ValueError(
            f"seed is {seed.numel()} of {seed.dtype} on {seed.device}, expected one int64 on the "
            "CPU"
        )
    x = x.contiguous()
    out = torch.empty_like(x)
    bfloat = x.dtype == torch.bfloat16
    _C.dropout(
        x.data_ptr(),
        x.numel(),
        bfloat,
        seed.data_ptr(),
        *_threshold(p),
        relu,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _forward(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return _run(x, seed, p, relu=False)


def _relu_forward(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return _run(x, seed, p, relu=True)


def _relu_gradient(gradient: Tensor, out: Tensor, p: float) -> Tensor:
    _check("out", out, p)
    _check("gradient", gradient, p)
    if gradient.dtype != out.dtype or gradient.shape != out.shape:
        raise ValueError(
            f"gradient is {gradient.dtype} {list(gradient.shape)}, but out {out.dtype} "
            f"{list(out.shape)}"
        )
    gradient, out = gradient.contiguous(), out.contiguous()
    by_input = torch.empty_like(out)
    _C.relu_dropout_backward(
        gradient.data_ptr(),
        out.data_ptr(),
        out.numel(),
        out.dtype == torch.bfloat16,
        _threshold(p)[1],
        by_input.data_ptr(),
        torch.get_num_threads(),
    )
    return by_input


def _like(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _backward(ctx, gradient: Tensor) -> tuple:
    return _dropout(gradient, *ctx.saved_tensors, ctx.p), None, None


def _save_relu(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.p = inputs[2]
    ctx.save_for_backward(output)


def _backward_relu(ctx, gradient: Tensor) -> tuple:
    return _relu_dropout_backward(gradient, *ctx.saved_tensors, ctx.p), None, None


_dropout = register(
    "dropout(Tensor x, Tensor seed, float p) -> Tensor", _forward, _like, _save, _backward
)
_relu_dropout = register(
    "relu_dropout(Tensor x, Tensor seed, float p) -> Tensor",
    _relu_forward,
    _like,
    _save_relu,
    _backward_relu,
)
_relu_dropout_backward = register(
    "relu_dropout_backward(Tensor gradient, Tensor out, float p) -> Tensor", _relu_gradient, _like
)
