"""The matching as one operator, ``torch.ops.detr_fast.match``: for ``torch.compile``, which cannot
trace compiled code. Eager calls bypass it and its dispatch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast import matching_cpu, matching_cuda
from detr_fast.matching_input import CostOptions
from detr_fast.ops.library import cpu_fallback, has_kernels

_library = torch.library.Library("detr_fast", "FRAGMENT")
_library.define(
    "match(Tensor[] logits, Tensor[] boxes, Tensor labels, Tensor target_boxes, Tensor? offsets, "
    "SymInt[]? counts, SymInt most, float[] cost, bool focal, bool nonfinite_last) -> "
    "(Tensor query_index, Tensor pairs)"
)


def match(
    logits: Sequence[Tensor],  # L of [B, N, C]
    boxes: Sequence[Tensor],  # L of [B, N, 4]
    targets: matching_cuda.DeviceTargets,
    options: CostOptions,
) -> tuple[Tensor, Tensor]:  # as matching_cuda.launch; pairs if counts are known
    """Call the operator."""
    return torch.ops.detr_fast.match(
        list(logits),
        list(boxes),
        targets.labels,
        targets.boxes,
        targets.offsets,
        targets.counts,
        targets.most,
        [*options.weights, *options.focal_options, *options.giou_divisor],
        options.focal,
        options.nonfinite_last,
    )


def _options(cost: Sequence[float], focal: bool, nonfinite_last: bool) -> CostOptions:
    return CostOptions(tuple(cost[:3]), focal, tuple(cost[3:6]), tuple(cost[6:]), nonfinite_last)


def _pairs(layers: int, queries: int, counts: Sequence[int] | None) -> int:
    return 0 if counts is None else layers * sum(2 * min(queries, m) for m in counts)


@torch.library.impl(_library, "match", "CPU")
def _match_on_cpu(
    logits, boxes, labels, target_boxes, offsets, counts, most, cost, focal, nonfinite_last
):
    known = counts
    if counts is None:
        counts = offsets.diff().tolist()
    total = sum(counts)
    targets = [
        {"labels": image_labels, "boxes": image_boxes}
        for image_labels, image_boxes in zip(
            labels[:total].split_with_sizes(counts),
            target_boxes[:total].split_with_sizes(counts),
            strict=True,
        )
    ]
    layers = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes, strict=True)]
    names = ["outputs"] if len(layers) == 1 else [f"layers[{k}]" for k in range(len(layers))]
    options = _options(cost, focal, nonfinite_last)
    pairs, sizes = matching_cpu.solve(layers, names, targets, options)
    index = matching_cpu.query_index(pairs.view(len(layers), -1), sizes, counts, len(labels))
    return index, pairs if known is not None else pairs.new_empty(0)


@torch.library.impl(_library, "match", "CUDA")
def _match_on_gpu(
    logits, boxes, labels, target_boxes, offsets, counts, most, cost, focal, nonfinite_last
):
    options = _options(cost, focal, nonfinite_last)
    if not has_kernels(labels):
        return cpu_fallback(_match_on_cpu)(
            logits, boxes, labels, target_boxes, offsets, counts, most, cost, focal, nonfinite_last
        )
    # Compiled code may choose other strides than those that were traced.
    logits, boxes = [t.contiguous() for t in logits], [t.contiguous() for t in boxes]
    labels, target_boxes = labels.contiguous(), target_boxes.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    targets = matching_cuda.DeviceTargets(labels, target_boxes, counts, offsets, most)
    return matching_cuda.launch(logits, boxes, targets, options)


@torch.library.register_fake("detr_fast::match", lib=_library)
def _match_of_shapes(
    logits, boxes, labels, target_boxes, offsets, counts, most, cost, focal, nonfinite_last
):
    layers, queries = len(logits), logits[0].shape[1]
    query_index = labels.new_empty((layers, labels.shape[0]), dtype=torch.int64)
    return query_index, labels.new_empty(_pairs(layers, queries, counts), dtype=torch.int64)
