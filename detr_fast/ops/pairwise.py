"""IoU and generalised IoU of every pair of boxes.

Letters: N boxes and M boxes, in batches of B.
"""

import torch
from torch import Tensor

from detr_fast.ops.library import DTYPES, compute_dtype, kernel_for, refuse_forward_mode, register

FORMATS = ("xyxy", "cxcywh")


def box_iou(
    boxes1: Tensor,  # [N, 4] or [B, N, 4]
    boxes2: Tensor,  # [M, 4] or [B, M, 4]
    format: str = "xyxy",
) -> Tensor:  # [N, M] or [B, N, M] in 0..1
    """Return the intersection over union of every box of one set with every box of the other.

    As ``torchvision.ops.box_iou``, but batches are allowed, and two boxes without area give 0, not
    NaN. Differentiable with respect to both, in compiled code; where boxes only touch, the
    derivative is the one that the formula has in torch.

    Args:
        boxes1, boxes2: float32, float64 or half-precision boxes of one dtype and device, in any
            unit, with widths and heights that are not negative. NaN gives NaN.
        format: ``"xyxy"``, two corners, or ``"cxcywh"``, centre and size.

    Returns:
        float64 for float64 boxes, else float32, in which half-precision boxes are computed.

    Raises:
        ValueError: for an unknown format, and for shapes, dtypes or devices that do not fit.
        NotImplementedError: for a second derivative, and for one in forward mode (which compiled
            code does not notice: there it is 0).
    """
    refuse_forward_mode("box_iou", boxes1, boxes2)
    return _pairwise_iou(boxes1, boxes2, format, False)


def generalized_box_iou(
    boxes1: Tensor,  # [N, 4] or [B, N, 4]
    boxes2: Tensor,  # [M, 4] or [B, M, 4]
    format: str = "xyxy",
) -> Tensor:  # [N, M] or [B, N, M] in -1..1
    """Return the generalised IoU of every box of one set with every box of the other.

    Rezatofighi et al. 2019: IoU minus the share of the smallest enclosing box that neither covers.
    As ``torchvision.ops.generalized_box_iou``; of boxes without area, two points at different
    places give -1 and coincident ones 0. Everything else as in :func:`box_iou`.
    """
    refuse_forward_mode("generalized_box_iou", boxes1, boxes2)
    return _pairwise_iou(boxes1, boxes2, format, True)


def _check(boxes1: Tensor, boxes2: Tensor, format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, but must be one of {', '.join(FORMATS)}")
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if boxes.dim() not in (2, 3) or boxes.shape[-1] != 4:
            raise ValueError(
                f"{name} has shape {list(boxes.shape)}, but must be [N, 4] or [B, N, 4]"
            )
        if boxes.dtype not in DTYPES:
            raise ValueError(f"{name} is {boxes.dtype}, but must be floating point")
    if boxes1.dim() != boxes2.dim() or boxes1.shape[:-2] != boxes2.shape[:-2]:
        raise ValueError(
            f"boxes1 has shape {list(boxes1.shape)}, but boxes2 {list(boxes2.shape)}: not the same "
            "batch"
        )
    if boxes1.dtype != boxes2.dtype or boxes1.device != boxes2.device:
        raise ValueError(
            f"boxes1 is {boxes1.dtype} on {boxes1.device}, but boxes2 {boxes2.dtype} on "
            f"{boxes2.device}"
        )


def _out_shape(boxes1: Tensor, boxes2: Tensor) -> tuple[int, ...]:
    return (*boxes1.shape[:-1], boxes2.shape[-2])


def _sizes(boxes1: Tensor, boxes2: Tensor) -> tuple[int, int, int]:  # B, N, M
    batch = boxes1.shape[0] if boxes1.dim() == 3 else 1
    return batch, boxes1.shape[-2], boxes2.shape[-2]


def _forward(boxes1: Tensor, boxes2: Tensor, format: str, generalized: bool) -> Tensor:
    _check(boxes1, boxes2, format)
    real = compute_dtype(boxes1.dtype)
    first, second = boxes1.to(real).contiguous(), boxes2.to(real).contiguous()
    out = first.new_empty(_out_shape(first, second))
    run, where = kernel_for("box_iou", out.device)
    run(
        (first.data_ptr(), second.data_ptr()),
        _sizes(first, second),
        (real == torch.float64, format == "cxcywh", generalized),
        out.data_ptr(),
        *(where or (torch.get_num_threads(),)),
    )
    return out


def _fake(boxes1: Tensor, boxes2: Tensor, format: str, generalized: bool) -> Tensor:
    _check(boxes1, boxes2, format)
    return boxes1.new_empty(_out_shape(boxes1, boxes2), dtype=compute_dtype(boxes1.dtype))


def _gradients(
    gradient: Tensor, boxes1: Tensor, boxes2: Tensor, format: str, generalized: bool
) -> tuple[Tensor, Tensor]:
    _check(boxes1, boxes2, format)
    if gradient.shape != _out_shape(boxes1, boxes2):
        raise ValueError(
            f"gradient has shape {list(gradient.shape)}, but the boxes' shapes need "
            f"{list(_out_shape(boxes1, boxes2))}"
        )
    real = compute_dtype(boxes1.dtype)
    first, second, gradient = (t.to(real).contiguous() for t in (boxes1, boxes2, gradient))
    out1, out2 = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (first, second)
    )
    run, where = kernel_for("box_iou_backward", out1.device)
    run(
        (first.data_ptr(), second.data_ptr()),
        _sizes(first, second),
        (real == torch.float64, format == "cxcywh", generalized),
        gradient.data_ptr(),
        (out1.data_ptr(), out2.data_ptr()),
        *(where or (torch.get_num_threads(),)),
    )
    return out1.to(boxes1.dtype), out2.to(boxes2.dtype)


def _fake_gradients(
    gradient: Tensor, boxes1: Tensor, boxes2: Tensor, format: str, generalized: bool
) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    boxes1, boxes2, ctx.format, ctx.generalized = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    out = _pairwise_iou_backward(gradient, *ctx.saved_tensors, ctx.format, ctx.generalized)
    return (*out, None, None)


_pairwise_iou = register(
    "pairwise_iou(Tensor boxes1, Tensor boxes2, str format, bool generalized) -> Tensor",
    _forward,
    _fake,
    _save,
    _backward,
)
_pairwise_iou_backward = register(
    "pairwise_iou_backward(Tensor gradient, Tensor boxes1, Tensor boxes2, str format, "
    "bool generalized) -> (Tensor, Tensor)",
    _gradients,
    _fake_gradients,
)
