"""The matching as one operator, ``torch.ops.detr_fast.match``: for ``torch.compile``, which cannot
trace compiled code. Eager calls bypass it and its dispatch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast.matching import cpu, cuda
from detr_fast.matching.options import CostOptions
from detr_fast.matching.placed import PlacedTargets
from detr_fast.ops.library import register


def match(
    logits: Sequence[Tensor],  # L of [B, N, C]
    boxes: Sequence[Tensor],  # L of [B, N, 4]
    targets: PlacedTargets,
    options: CostOptions,
    pairs: bool,  # whether they are wanted, for which counts must be known
) -> tuple[Tensor, Tensor]:  # as cuda.launch
    """Call the operator."""
    # With the counts, what is traced is for one pattern of images with more targets than queries.
    counts = targets.counts if pairs else None
    return _match(
        list(logits),
        list(boxes),
        targets.labels,
        targets.boxes,
        targets.offsets,
        counts,
        targets.most,
        [*options.weights, *options.focal_options, *options.giou_divisor],
        options.focal,
        options.nonfinite_last,
    )


def _kernel(
    logits: list[Tensor],
    boxes: list[Tensor],
    labels: Tensor,
    target_boxes: Tensor,
    offsets: Tensor | None,
    counts: list[int] | None,
    most: int,
    cost: list[float],
    focal: bool,
    nonfinite_last: bool,
) -> tuple[Tensor, Tensor]:
    if counts is not None and sum(counts) != len(labels):
        raise ValueError(
            f"{len(labels)} targets, but the matching was traced for images with {list(counts)}: "
            "trace it again for other numbers of targets"
        )
    options = CostOptions(tuple(cost[:3]), focal, tuple(cost[3:6]), tuple(cost[6:]), nonfinite_last)
    # Compiled code may choose other strides than those that were traced.
    logits, boxes = [t.contiguous() for t in logits], [t.contiguous() for t in boxes]
    labels, target_boxes = labels.contiguous(), target_boxes.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    targets = PlacedTargets(labels, target_boxes, counts, offsets, most)
    solve = cuda.launch if labels.is_cuda else _match_on_cpu
    return solve(logits, boxes, targets, options)


def _match_on_cpu(
    logits: list[Tensor],
    boxes: list[Tensor],
    targets: PlacedTargets,
    options: CostOptions,
) -> tuple[Tensor, Tensor]:  # as cuda.launch
    counts = targets.offsets.diff().tolist() if targets.counts is None else targets.counts
    total = sum(counts)
    images = [
        {"labels": labels, "boxes": target_boxes}
        for labels, target_boxes in zip(
            targets.labels[:total].split_with_sizes(counts),
            targets.boxes[:total].split_with_sizes(counts),
            strict=True,
        )
    ]
    layers = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes, strict=True)]
    query_index, pairs = cpu.solve_packed(layers, images, len(targets.labels), options)
    return query_index, pairs if targets.counts is not None else pairs.new_empty(0)


def _shapes(
    logits: list[Tensor],
    boxes: list[Tensor],
    labels: Tensor,
    target_boxes: Tensor,
    offsets: Tensor | None,
    counts: list[int] | None,
    *_: object,
) -> tuple[Tensor, Tensor]:
    layers, queries = len(logits), logits[0].shape[1]
    pairs = 0 if counts is None else layers * sum(2 * min(queries, m) for m in counts)
    query_index = labels.new_empty((layers, labels.shape[0]), dtype=torch.int64)
    return query_index, labels.new_empty(pairs, dtype=torch.int64)


_match = register(
    "match(Tensor[] logits, Tensor[] boxes, Tensor labels, Tensor target_boxes, Tensor? offsets, "
    "SymInt[]? counts, SymInt most, float[] cost, bool focal, bool nonfinite_last) -> "
    "(Tensor query_index, Tensor pairs)",
    _kernel,
    _shapes,
)
