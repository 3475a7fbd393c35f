"""FastMatcher on CUDA tensors: it launches kernels and waits for nothing.

``torch.compile`` reads its input in the same way, on any device.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from detr_fast import _C
from detr_fast.faults import fault_slots, layer_name, raise_pending
from detr_fast.matching_input import CostOptions, check_layers, check_targets, same_dtype
from detr_fast.ops.library import DTYPES, current_stream
from detr_fast.packing import PackedTargets


class DeviceTargets(NamedTuple):
    """Targets on the predictions' device."""

    labels: Tensor  # [T] int64
    boxes: Tensor  # [T, 4] cxcywh, float32; float64 on a CPU if the predictions are
    counts: Sequence[int] | None  # M of each image; None: only in offsets
    offsets: Tensor | None  # [B + 1] int32
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
) -> DeviceTargets:
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
            return DeviceTargets(
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
    return DeviceTargets(
        targets.labels, targets.boxes, targets.counts, targets.offsets, targets.most
    )


def launch(
    logits: Sequence[Tensor],  # L of [B, N, C]
    boxes: Sequence[Tensor],  # L of [B, N, 4]
    targets: DeviceTargets,
    options: CostOptions,
) -> tuple[Tensor, Tensor]:  # [L, T] int64, [L * 2 * sum of min(N, M)] int64
    """Match every layer and image on the current stream.

    Returns:
        The query of each target, -1 for none; and, if the host knows the sizes, for each layer, for
        each image its min(N, M) queries, ascending, and then their targets (otherwise an empty
        tensor).

    Raises:
        ValueError: a fault that an earlier call found.
    """
    device = logits[0].device
    if not _is_capturing(device):
        raise_pending(device)
    b, n, c = logits[0].shape
    layers, total = len(logits), len(targets.labels)
    known = targets.counts is not None
    pairs = layers * sum(2 * min(n, m) for m in targets.counts) if known else 0
    query_index = torch.empty(layers, total, dtype=torch.int64, device=device)
    pair_index = torch.empty(pairs, dtype=torch.int64, device=device)
    if b and total:
        rows, cols = min(n, targets.most), max(n, targets.most)
        # Rows are rounded up, so that fewer different sizes are looked up.
        workspace = layers * b * _workspace(device.index or 0, -(-rows // 64) * 64, cols)
        costs = -(-layers * total * n * 4 // 16) * 16  # bytes, aligned for wider numbers
        scratch = torch.empty(costs + workspace, dtype=torch.uint8, device=device)
        address = scratch.data_ptr()
        _C.cuda.match(
            logits=[t.data_ptr() for t in logits],
            boxes=[t.data_ptr() for t in boxes],
            shape=(b, n, c),
            dtypes=(DTYPES[logits[0].dtype], DTYPES[boxes[0].dtype]),
            labels=targets.labels.data_ptr(),
            target_boxes=targets.boxes.data_ptr(),
            targets=total,
            counts=targets.counts or [],
            device_offsets=0 if known else targets.offsets.data_ptr(),
            most_targets=targets.most,
            cost=options[:4],
            nonfinite_last=options.nonfinite_last,
            scratch=address,
            query_index=query_index.data_ptr(),
            pairs=pair_index.data_ptr() if pairs else 0,
            faults=fault_slots(device, layers, b).address,
            memory=address + costs if workspace else 0,
            device=device.index or 0,
            stream=current_stream(device),
        )
    else:
        query_index.fill_(-1)  # without images, targets can only be padding
    return query_index, pair_index


def is_deferred(device: torch.device) -> bool:
    """Return whether only a later call can raise this one's faults: compiled, or being captured."""
    return torch.compiler.is_compiling() or _is_capturing(device)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=256)
def _workspace(device: int, rows: int, cols: int) -> int:
    return _C.cuda.assignment_workspace(device, rows, cols)
