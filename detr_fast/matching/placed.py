"""What a matching reads as whole tensors: kernels on a GPU, and ``torch.compile`` on any device."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detr_fast.faults import layer_name
from detr_fast.matching.input import check_layers, check_targets, same_dtype
from detr_fast.matching.packing import PackedTargets


class PlacedTargets(NamedTuple):
    """Targets on the predictions' device."""

    labels: Tensor  # [T] int64
    boxes: Tensor  # [T, 4] cxcywh, float32; float64 on a CPU if the predictions are
    counts: Sequence[int] | None  # M of each image; None: only in offsets
    offsets: Tensor | None  # [B + 1] int32; None: only in counts
    most: int  # upper bound of M


def read_layers(
    layers: Sequence[Mapping[str, Tensor]],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the layers' logits [B, N, C] and boxes [B, N, 4], contiguous, in a dtype that kernels
    read (on a CPU all in float64, if any of them is).

    Raises:
        ValueError: as :func:`check_layers`, for tensors on several devices, and for float64 on a
            GPU.
    """
    check_layers(layers)
    logits = [layer["pred_logits"].detach() for layer in layers]
    boxes = [layer["pred_boxes"].detach() for layer in layers]
    for name, tensors in (("pred_logits", logits), ("pred_boxes", boxes)):
        for k, tensor in enumerate(tensors):
            layer = layer_name(k, len(layers))
            if tensor.device != logits[0].device:
                first = layer_name(0, len(layers))
                raise ValueError(
                    f"{layer}[{name!r}] is on {tensor.device}, but {first}['pred_logits'] on "
                    f"{logits[0].device}"
                )
            if tensor.is_cuda and tensor.dtype == torch.float64:
                raise ValueError(
                    f"{layer}[{name!r}] is float64, which only the CPU can match: pass .float(), "
                    "or copies on the CPU"
                )
    if any(tensor.dtype == torch.float64 for tensor in (*logits, *boxes)):
        return [t.double().contiguous() for t in logits], [t.double().contiguous() for t in boxes]
    return [t.contiguous() for t in same_dtype(logits)], [t.contiguous() for t in same_dtype(boxes)]


def read_targets(
    targets: PackedTargets | Sequence[Mapping[str, Tensor]],
    images: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> PlacedTargets:
    """Copy targets to the device; no wait if they are packed, there already, or on the CPU.

    Args:
        dtype: of the boxes of a list that is there already; others are float32.

    Raises:
        ValueError: as :func:`check_targets`.
    """
    if not isinstance(targets, PackedTargets):
        check_targets(targets, images)
        if all(t[key].device == device for t in targets for key in ("labels", "boxes")):
            counts = [len(target["labels"]) for target in targets]
            labels = [t["labels"] for t in targets if len(t["labels"])]
            boxes = [t["boxes"] for t in targets if len(t["labels"])]
            if not labels:
                labels, boxes = [torch.empty(0, device=device)], [torch.empty(0, 4, device=device)]
            return PlacedTargets(
                torch.cat(labels).long(),
                torch.cat(boxes).detach().to(dtype),
                counts,
                None,
                max(counts) if counts else 0,
            )
        targets = PackedTargets.pack(targets)
    if len(targets) != images:
        raise ValueError(f"predictions for {images} images, but {len(targets)} targets")
    targets = targets.to(device)
    return PlacedTargets(
        targets.labels, targets.boxes, targets.counts, targets.offsets, targets.most
    )
