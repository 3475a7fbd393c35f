"""Ops that the loss needs on matched pairs: the box losses of each decoder layer, and the class
that each query should have.

Both take a matching as ``FastMatcher.match_packed`` returns it. Letters: B images, N queries, K
classes, T targets of all images, L decoder layers.
"""

import torch
from torch import Tensor

from detr_fast.ops.library import DTYPES, compute_dtype, kernel_for, refuse_forward_mode, register

BOX_LOSSES = ("l1", "smooth_l1")


def box_losses(
    boxes: Tensor,  # [L, B, N, 4] cxcywh
    target_boxes: Tensor,  # [T, 4] cxcywh
    query_index: Tensor,  # [L, T] int64: the query of each target in its image; -1 = unmatched
    image_offsets: Tensor,  # [B + 1] int32 or int64: where the images' targets begin, the last end
    box_loss: str = "l1",
) -> tuple[Tensor, Tensor]:  # [L], [L]
    """Return the sums over each layer's matched pairs of \\|box - target\\|_1 and of 1 - GIoU.

    Carion et al. 2020, section 3.1, before the division by the number of targets. Forward and
    backward are one kernel each on a GPU, and nothing makes the host wait. Sums are taken in an
    order that does not change from run to run.

    Args:
        boxes: float32, float64, float16 or bfloat16, read as they are; their gradient has the same
            dtype. Where a derivative does not exist (equal edges, boxes that only touch, no area),
            it is the one that the formula has in torch.
        target_boxes: of any floating dtype. No gradient goes to them.
        query_index: an index outside -1..N-1 counts as unmatched, as does a target that no image
            has, such as padding behind the last offset.
        box_loss: ``"l1"``, or ``"smooth_l1"``: quadratic below a difference of 1.

    Returns:
        float64 for float64 boxes, else float32.

    Raises:
        ValueError: for an unknown ``box_loss``, for shapes, dtypes or devices that do not fit, for
            targets that require a gradient, and, on the CPU, for offsets that do not rise from 0 to
            at most T. (On a GPU those give a wrong result, but no access outside the tensors.)
        NotImplementedError: for a second derivative, and for one in forward mode (which compiled
            code does not notice: there it is 0).
    """
    refuse_forward_mode("box_losses", boxes, target_boxes)
    return _box_losses(boxes, target_boxes, query_index, image_offsets, box_loss)


def target_classes(
    query_index: Tensor,  # [L, T] int64
    labels: Tensor,  # [T] integers
    image_offsets: Tensor,  # [B + 1] int32 or int64
    queries: int,  # N
    no_object: int,  # K
) -> Tensor:  # [L, B, N] int64
    """Return the class that each query should have: its target's label, or else ``no_object``.

    A label outside 0..K-1 counts as no object; ``query_index`` and ``image_offsets`` are read as by
    :func:`box_losses`. One kernel on a GPU, without a wait.

    Raises:
        ValueError: for a negative size, and for shapes, dtypes or devices that do not fit.
    """
    return _target_classes(query_index, labels, image_offsets, queries, no_object)


def _check_matching(query_index: Tensor, image_offsets: Tensor, others: dict[str, Tensor]) -> None:
    if query_index.dim() != 2 or query_index.dtype != torch.int64:
        raise ValueError(
            f"query_index is {query_index.dtype} {list(query_index.shape)}, "
            "but must be int64 [L, T]"
        )
    if (
        image_offsets.dim() != 1
        or image_offsets.dtype not in (torch.int32, torch.int64)
        or image_offsets.shape[0] == 0
    ):
        raise ValueError(
            f"image_offsets is {image_offsets.dtype} {list(image_offsets.shape)}, "
            "but must be int32 or int64 [B + 1]"
        )
    for name, tensor in {"image_offsets": image_offsets, **others}.items():
        if tensor.device != query_index.device:
            raise ValueError(
                f"{name} is on {tensor.device}, but query_index on {query_index.device}"
            )


def _check_offsets(image_offsets: Tensor, targets: int) -> None:
    """Check values, where they can be read without a wait."""
    if image_offsets.device.type != "cpu":
        return
    offsets = image_offsets.tolist()
    for b, (begin, end) in enumerate(zip([0, *offsets], [*offsets, targets], strict=True)):
        if begin > end or (b == 0 and end != 0):
            raise ValueError(
                f"image_offsets is {offsets}, but must rise from 0 to at most {targets}, "
                "the number of targets"
            )


def _check_boxes(
    boxes: Tensor, target_boxes: Tensor, query_index: Tensor, image_offsets: Tensor, box_loss: str
) -> None:
    if box_loss not in BOX_LOSSES:
        raise ValueError(f"box_loss is {box_loss!r}, but must be one of {', '.join(BOX_LOSSES)}")
    _check_matching(query_index, image_offsets, {"boxes": boxes, "target_boxes": target_boxes})
    layers, targets = query_index.shape
    for name, tensor, shape in (
        ("boxes", boxes, (layers, image_offsets.shape[0] - 1, *boxes.shape[2:3], 4)),
        ("target_boxes", target_boxes, (targets, 4)),
    ):
        if tensor.shape != shape or tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, but query_index of shape "
                f"{list(query_index.shape)} and image_offsets of shape {list(image_offsets.shape)} "
                f"need floating point {list(shape)}"
            )


def _addresses(
    boxes: Tensor, target_boxes: Tensor, query_index: Tensor, image_offsets: Tensor, box_loss: str
) -> tuple[tuple, tuple]:
    """Return both compiled ops' first arguments, and the tensors whose addresses they hold."""
    keep = (
        boxes.contiguous(),
        target_boxes.to(compute_dtype(boxes.dtype)).contiguous(),
        query_index.contiguous(),
        image_offsets.contiguous(),
    )
    arguments = (
        tuple(tensor.data_ptr() for tensor in keep),
        (*boxes.shape[:3], query_index.shape[1]),
        DTYPES[boxes.dtype],
        image_offsets.dtype == torch.int64,
        box_loss == "smooth_l1",
    )
    return arguments, keep


def _forward(
    boxes: Tensor, target_boxes: Tensor, query_index: Tensor, image_offsets: Tensor, box_loss: str
) -> tuple[Tensor, Tensor]:
    _check_boxes(boxes, target_boxes, query_index, image_offsets, box_loss)
    _check_offsets(image_offsets, query_index.shape[1])
    arguments, _keep = _addresses(boxes, target_boxes, query_index, image_offsets, box_loss)
    coordinates, giou = _empty_sums(boxes), _empty_sums(boxes)
    run, where = kernel_for("box_losses", boxes.device)
    run(*arguments, coordinates.data_ptr(), giou.data_ptr(), *where)
    return coordinates, giou


def _empty_sums(boxes: Tensor) -> Tensor:
    return boxes.new_empty(boxes.shape[:1], dtype=compute_dtype(boxes.dtype))


def _fake(
    boxes: Tensor, target_boxes: Tensor, query_index: Tensor, image_offsets: Tensor, box_loss: str
) -> tuple[Tensor, Tensor]:
    _check_boxes(boxes, target_boxes, query_index, image_offsets, box_loss)
    return _empty_sums(boxes), _empty_sums(boxes)


def _gradient(
    by_coordinates: Tensor,  # [L]
    by_giou: Tensor,  # [L]
    boxes: Tensor,
    target_boxes: Tensor,
    query_index: Tensor,
    image_offsets: Tensor,
    box_loss: str,
) -> Tensor:  # as boxes
    _check_boxes(boxes, target_boxes, query_index, image_offsets, box_loss)
    _check_offsets(image_offsets, query_index.shape[1])
    real = compute_dtype(boxes.dtype)
    by_coordinates, by_giou = by_coordinates.to(real), by_giou.to(real)
    for name, by in (("by_coordinates", by_coordinates), ("by_giou", by_giou)):
        if by.shape != boxes.shape[:1]:
            raise ValueError(f"{name} has shape {list(by.shape)}, but boxes {list(boxes.shape)}")
    arguments, _keep = _addresses(boxes, target_boxes, query_index, image_offsets, box_loss)
    gradient = boxes.new_empty(boxes.shape)
    run, where = kernel_for("box_losses_backward", boxes.device)
    run(
        *arguments,
        # A sum's gradient is one number expanded: read with its stride of 0, not copied.
        (by_coordinates.data_ptr(), by_coordinates.stride(0)),
        (by_giou.data_ptr(), by_giou.stride(0)),
        gradient.data_ptr(),
        *where,
    )
    return gradient


def _fake_gradient(
    by_coordinates: Tensor,
    by_giou: Tensor,
    boxes: Tensor,
    target_boxes: Tensor,
    query_index: Tensor,
    image_offsets: Tensor,
    box_loss: str,
) -> Tensor:
    return boxes.new_empty(boxes.shape)


def _save(ctx, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.box_loss = inputs
    if ctx.needs_input_grad[1]:
        raise ValueError("target_boxes requires a gradient, which box_losses does not compute")
    ctx.save_for_backward(*tensors)


def _backward(ctx, by_coordinates: Tensor, by_giou: Tensor) -> tuple:
    gradient = _box_losses_backward(by_coordinates, by_giou, *ctx.saved_tensors, ctx.box_loss)
    return gradient, None, None, None, None


def _check_classes(
    query_index: Tensor, labels: Tensor, image_offsets: Tensor, queries: int, no_object: int
) -> None:
    _check_matching(query_index, image_offsets, {"labels": labels})
    if labels.shape != query_index.shape[1:] or labels.is_floating_point():
        raise ValueError(
            f"labels is {labels.dtype} {list(labels.shape)}, but query_index of shape "
            f"{list(query_index.shape)} needs integers {list(query_index.shape[1:])}"
        )
    if queries < 0 or no_object < 0:
        raise ValueError(f"queries is {queries} and no_object {no_object}: neither may be negative")


def _classes(
    query_index: Tensor, labels: Tensor, image_offsets: Tensor, queries: int, no_object: int
) -> Tensor:
    _check_classes(query_index, labels, image_offsets, queries, no_object)
    layers, targets = query_index.shape
    _check_offsets(image_offsets, targets)
    images = len(image_offsets) - 1
    query_index, labels = query_index.contiguous(), labels.long().contiguous()
    image_offsets = image_offsets.contiguous()
    classes = query_index.new_empty((layers, images, queries))
    run, where = kernel_for("target_classes", classes.device)
    run(
        query_index.data_ptr(),
        image_offsets.data_ptr(),
        image_offsets.dtype == torch.int64,
        (layers, images, queries, targets),
        labels.data_ptr(),
        no_object,
        classes.data_ptr(),
        *where,
    )
    return classes


def _fake_classes(
    query_index: Tensor, labels: Tensor, image_offsets: Tensor, queries: int, no_object: int
) -> Tensor:
    _check_classes(query_index, labels, image_offsets, queries, no_object)
    return query_index.new_empty((query_index.shape[0], image_offsets.shape[0] - 1, queries))


_MATCHED = "Tensor boxes, Tensor target_boxes, Tensor query_index, Tensor image_offsets, "
_box_losses = register(
    f"box_losses({_MATCHED}str box_loss) -> (Tensor, Tensor)", _forward, _fake, _save, _backward
)
_box_losses_backward = register(
    f"box_losses_backward(Tensor by_coordinates, Tensor by_giou, {_MATCHED}str box_loss) -> Tensor",
    _gradient,
    _fake_gradient,
)
_target_classes = register(
    "target_classes(Tensor query_index, Tensor labels, Tensor image_offsets, SymInt queries, "
    "int no_object) -> Tensor",
    _classes,
    _fake_classes,
)
