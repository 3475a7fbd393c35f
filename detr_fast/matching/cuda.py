"""FastMatcher on CUDA tensors: it launches kernels and waits for nothing."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from detr_fast import _C
from detr_fast.faults import fault_slots, raise_pending
from detr_fast.matching.options import CostOptions
from detr_fast.matching.placed import PlacedTargets
from detr_fast.ops.library import DTYPES, current_stream


def launch(
    logits: Sequence[Tensor],  # L of [B, N, C]
    boxes: Sequence[Tensor],  # L of [B, N, 4]
    targets: PlacedTargets,
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
