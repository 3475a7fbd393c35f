"""FastMatcher's input: checked, and copied where compiled code cannot read it in place."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detr_fast.faults import layer_name
from detr_fast.ops.library import DTYPES


class MatchingInput(NamedTuple):
    """Addresses of contiguous CPU memory; the arguments of ``_C.match``."""

    logits: list[int]  # L of [B, N, C]
    boxes: list[int]  # L of [B, N, 4]
    shape: tuple[int, int, int]  # B, N, C
    dtypes: tuple[int, int]  # codes of the logits' and boxes' dtype
    labels: list[int]  # B of [M] int64
    target_boxes: list[int]  # B of [M, 4], float64 if the predictions are, else float32
    counts: list[int]  # M of each image
    keep: tuple  # the tensors, whose addresses stay valid with them


def read(
    layers: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
) -> MatchingInput:
    """Return the addresses of the tensors as they are if possible, otherwise of converted copies.

    Raises:
        ValueError: for a missing key, a wrong shape or dtype, or a tensor without memory. Values
            are not checked.
    """
    inputs = _read_in_place(layers, targets)
    if inputs is None:
        check_layers(layers)
        check_targets(targets, len(layers[0]["pred_logits"]))
        inputs = _read_in_place(*_convert(layers, targets))
        assert inputs is not None
    for key, addresses, entries in (
        ("pred_logits", inputs.logits, layers),
        ("pred_boxes", inputs.boxes, layers),
        ("labels", inputs.labels, targets),
        ("boxes", inputs.target_boxes, targets),
    ):
        if 0 in addresses:
            _check_memory(key, addresses, entries)
    return inputs


def _check_memory(
    key: str, addresses: Sequence[int], entries: Sequence[Mapping[str, Tensor]]
) -> None:
    """Raise ValueError for a tensor that has elements but no address, such as a DTensor."""
    for k, (address, entry) in enumerate(zip(addresses, entries, strict=True)):
        if address == 0 and entry[key].numel():
            name = layer_name(k, len(entries)) if key.startswith("pred_") else f"targets[{k}]"
            raise ValueError(
                f"{name}[{key!r}] is a {type(entry[key]).__name__} without memory that compiled "
                "code can read: pass a plain tensor (of a DTensor, to_local() or full_tensor())"
            )


def _read_in_place(
    layers: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
) -> MatchingInput | None:
    """Take the fast path, for what callers nearly always pass. None if anything else is found.

    At the smallest sizes this is most of the call, hence plain loops and no helper functions.
    """
    try:
        logits, boxes = layers[0]["pred_logits"], layers[0]["pred_boxes"]
        shape, dtype, box_dtype = logits.shape, logits.dtype, boxes.dtype
        b, n, c = shape
        box_shape = (b, n, 4)
        target_dtype = torch.float64 if dtype is torch.float64 else torch.float32
        codes = (DTYPES[dtype], DTYPES[box_dtype])
        if len(targets) != b or (codes[0] == 3) != (codes[1] == 3):
            return None
        logits_at, boxes_at = [], []
        for layer in layers:
            logits, boxes = layer["pred_logits"], layer["pred_boxes"]
            if not (
                logits.is_cpu
                and boxes.is_cpu
                and logits.shape == shape
                and boxes.shape == box_shape
                and logits.dtype is dtype
                and boxes.dtype is box_dtype
                and logits.is_contiguous()
                and boxes.is_contiguous()
            ):
                return None
            logits_at.append(logits.data_ptr())
            boxes_at.append(boxes.data_ptr())
        labels_at, targets_at, counts = [], [], []
        for target in targets:
            labels, boxes = target["labels"], target["boxes"]
            (m,) = labels.shape
            if not (
                labels.is_cpu
                and boxes.is_cpu
                and boxes.shape == (m, 4)
                and labels.dtype is torch.int64
                and boxes.dtype is target_dtype
                and (type(boxes) is Tensor or _misfit(boxes) is None)
                and labels.is_contiguous()
                and boxes.is_contiguous()
            ):
                return None
            labels_at.append(labels.data_ptr())
            targets_at.append(boxes.data_ptr())
            counts.append(m)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None
    return MatchingInput(
        logits_at, boxes_at, (b, n, c), codes, labels_at, targets_at, counts, (layers, targets)
    )


def _misfit(boxes: Tensor) -> str | None:
    """Return why boxes are not cxcywh in 0..1 as far as their type, torchvision's BoundingBoxes,
    says; None if it does not. Values are not read: on a GPU that would be a wait.
    """
    form = getattr(boxes, "format", None)
    if form is not None and form.value != "CXCYWH":
        return f"has the format {form.value}"
    height, width = getattr(boxes, "canvas_size", (1, 1))
    if (height, width) != (1, 1) and boxes.numel():
        return f"is in pixels of a canvas of {width} x {height}, as its type says"
    return None


@torch.no_grad()
def _convert(
    layers: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
) -> tuple[list[dict], list[dict]]:
    """Return contiguous CPU tensors, each kind of one dtype: what the fast path takes."""
    sizes = [len(target["labels"]) for target in targets]
    logits = [layer["pred_logits"] for layer in layers]
    boxes = [layer["pred_boxes"] for layer in layers]
    if any(t.dtype == torch.float64 for t in (*logits, *boxes)):
        logits, boxes, real = (
            [t.double() for t in logits],
            [t.double() for t in boxes],
            torch.float64,
        )
    else:
        logits, boxes, real = same_dtype(logits), same_dtype(boxes), torch.float32
    labels, target_boxes, *predictions = _to_cpu(
        [
            _cat([target["labels"] for target in targets], (0,), torch.int64),
            _cat([target["boxes"] for target in targets], (0, 4), real),
            *(t.contiguous() for t in (*logits, *boxes)),
        ]
    )
    half = len(layers)
    return (
        [{"pred_logits": predictions[k], "pred_boxes": predictions[half + k]} for k in range(half)],
        [
            {"labels": image_labels, "boxes": image_boxes}
            for image_labels, image_boxes in zip(
                labels.split_with_sizes(sizes), target_boxes.split_with_sizes(sizes), strict=True
            )
        ],
    )


def same_dtype(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors unchanged if all have one dtype that compiled code reads, else float32."""
    dtype = tensors[0].dtype
    if dtype in DTYPES and all(t.dtype == dtype for t in tensors):
        return tensors
    return [t.float() for t in tensors]


def _cat(parts: Sequence[Tensor], empty_shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Concatenate the images' parts, leaving out empty ones, whatever their shape."""
    parts = [part.to(dtype) for part in parts if part.numel()]
    return torch.cat(parts) if parts else torch.empty(empty_shape, dtype=dtype, device="cpu")


def _to_cpu(tensors: list[Tensor]) -> list[Tensor]:
    """Return contiguous tensors on the CPU: those there as they are, the others by one transfer."""
    away = [k for k, t in enumerate(tensors) if t.device.type != "cpu"]
    # Wider elements first, to stay aligned in the packed buffer.
    away.sort(key=lambda k: -tensors[k].element_size())
    result = list(tensors)
    if away:
        device = tensors[away[0]].device
        copies = pack_and_copy([tensors[k].to(device) for k in away])
        for k, copy in zip(away, copies, strict=True):
            result[k] = copy
    return result


def pack_and_copy(tensors: list[Tensor]) -> list[Tensor]:
    """Copy tensors of one device to the CPU in one transfer. Wider elements must come first."""
    packed = torch.cat([t.flatten().view(torch.uint8) for t in tensors]).cpu()
    parts = packed.split_with_sizes([t.numel() * t.element_size() for t in tensors])
    return [part.view(t.dtype).view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def check_layers(layers: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise ValueError for a missing key, and for shapes or dtypes that do not fit."""
    if isinstance(layers, Mapping):
        raise ValueError("layers is one layer's outputs, expected a list of them")
    for k, layer in enumerate(layers):
        name = layer_name(k, len(layers))
        _check_keys(layer, name)
        for key in ("pred_logits", "pred_boxes"):
            if key not in layer:
                raise ValueError(f"{name} has no {key!r}")
            _check_tensor(layer[key], f"{name}[{key!r}]")
            if not layer[key].is_floating_point():
                raise ValueError(
                    f"{name}[{key!r}] is {layer[key].dtype}, but must be floating point"
                )
        logits, boxes = layer["pred_logits"], layer["pred_boxes"]
        if logits.dim() != 3:
            raise ValueError(
                f"{name}['pred_logits'] has shape {list(logits.shape)}, but must be [B, N, K + 1]"
            )
        if boxes.shape != (*logits.shape[:2], 4):
            raise ValueError(
                f"{name}['pred_boxes'] has shape {list(boxes.shape)}, but 'pred_logits' of shape "
                f"{list(logits.shape)} needs {[*logits.shape[:2], 4]}"
            )
        first = layers[0]["pred_logits"]
        if logits.shape != first.shape:
            raise ValueError(
                f"{name}['pred_logits'] has shape {list(logits.shape)}, but "
                f"layers[0]['pred_logits'] has {list(first.shape)}"
            )


def _check_keys(value: object, name: str) -> None:
    if value is None or isinstance(value, (Tensor, str, list, tuple)):  # no mapping of any kind
        raise ValueError(f"{name} must be a dict of tensors, not {type(value).__name__}")


def _check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(value).__name__}")


def check_targets(targets: Sequence[Mapping[str, Tensor]], images: int) -> None:
    """Raise ValueError for a missing key, and for shapes or dtypes that do not fit."""
    if isinstance(targets, Mapping):
        raise ValueError("targets is one dict, expected a list of one per image")
    if len(targets) != images:
        raise ValueError(f"predictions for {images} images, but {len(targets)} targets")
    for b, target in enumerate(targets):
        _check_keys(target, f"targets[{b}]")
        for key in ("labels", "boxes"):
            if key not in target:
                raise ValueError(f"targets[{b}] has no {key!r}")
            _check_tensor(target[key], f"targets[{b}][{key!r}]")
        labels, boxes = target["labels"], target["boxes"]
        if labels.dim() != 1:
            raise ValueError(
                f"targets[{b}]['labels'] has shape {list(labels.shape)}, but must be [M]"
            )
        # torch.tensor([]) has shape [0] and dtype float32: a common form of "no target".
        empty = labels.numel() == 0 and boxes.numel() == 0
        if boxes.shape != (len(labels), 4) and not empty:
            raise ValueError(
                f"targets[{b}]['boxes'] has shape {list(boxes.shape)}, but {len(labels)} labels "
                f"need [{len(labels)}, 4]"
            )
        if (labels.is_floating_point() or labels.is_complex()) and not empty:
            raise ValueError(
                f"targets[{b}]['labels'] is {labels.dtype}, but labels must be integers"
            )
        if boxes.is_complex():
            raise ValueError(f"targets[{b}]['boxes'] is {boxes.dtype}, but boxes must be real")
        if type(boxes) is not Tensor and (misfit := _misfit(boxes)) is not None:
            raise ValueError(
                f"targets[{b}]['boxes'] {misfit}, but boxes must be cxcywh in 0..1: divide them by "
                "the image's width and height, and pass a plain tensor"
            )
