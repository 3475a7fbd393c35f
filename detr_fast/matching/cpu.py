"""FastMatcher on the CPU: one call of compiled code, whose faults are raised as errors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detr_fast import _C
from detr_fast.faults import Fault
from detr_fast.matching.input import MatchingInput, read
from detr_fast.matching.options import CostOptions

_CPU = torch.device("cpu")


def solve(
    layers: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    options: CostOptions,
) -> tuple[Tensor, list[int]]:
    """Match every layer and image.

    Returns:
        One int64 tensor: for each layer, for each image its min(N, M) queries, ascending, and then
        their targets. And min(N, M) of each image.

    Raises:
        ValueError: as ``FastMatcher.forward``.
    """
    inputs = read(layers, targets)
    n = inputs.shape[1]
    sizes = [min(n, m) for m in inputs.counts]
    index = torch.empty(2 * sum(sizes) * len(layers), dtype=torch.int64, device=_CPU)
    fault = _C.match(
        logits=inputs.logits,
        boxes=inputs.boxes,
        shape=inputs.shape,
        dtypes=inputs.dtypes,
        labels=inputs.labels,
        target_boxes=inputs.target_boxes,
        counts=inputs.counts,
        cost=options[:4],
        nonfinite_last=options.nonfinite_last,
        index=index.data_ptr(),
        threads=torch.get_num_threads(),
    )
    if fault[0] != _C.Status.ok:
        _raise_fault(Fault(*fault), inputs, layers, targets, options.focal)
    return index, sizes


def solve_packed(
    layers: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    rows: int,  # T, and perhaps padding
    options: CostOptions,
) -> tuple[Tensor, Tensor]:  # [L, rows] int64, and the tensor that solve returns
    """Match like :func:`solve`, and return the query of each target, -1 for none, and the pairs."""
    pairs, sizes = solve(layers, targets, options)
    of_layer = pairs.view(len(layers), -1)
    query_index = pairs.new_full((len(layers), rows), -1)
    begin = offset = 0
    for size, target in zip(sizes, targets, strict=True):
        middle, end, count = begin + size, begin + 2 * size, len(target["labels"])
        queries, of_image = of_layer[:, begin:middle], of_layer[:, middle:end]
        query_index[:, offset : offset + count].scatter_(1, of_image, queries)
        begin, offset = end, offset + count
    return query_index, pairs


_BOX_RULE = "but cx, cy, w, h must be finite and w, h not negative"


def _raise_fault(
    fault: Fault,
    inputs: MatchingInput,
    layers: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    focal: bool,
) -> None:
    status, problem, query, target = fault
    if status == _C.Status.out_of_memory:
        raise MemoryError("no memory for the costs of one image's queries x targets")
    place = fault.place(len(layers), inputs.shape[0])
    if status == _C.Status.invalid_label:
        label, classes = int(targets[problem]["labels"][target]), inputs.shape[2] - (not focal)
        known = f"{classes} classes (0..{classes - 1})" if classes else "no class but 'no object'"
        raise fault.error(f"{place} is {label}, but logits have {known}")
    if status == _C.Status.invalid_target_box:
        box = targets[problem]["boxes"][target].tolist()
        raise fault.error(f"{place} is {box}, {_BOX_RULE}")
    if status == _C.Status.invalid_logits:
        reason = (
            "has no softmax: it holds NaN, inf or only -inf"
            if not focal
            else "has no focal cost: it holds NaN"
        )
        raise fault.error(f"{place} {reason}")
    if status == _C.Status.invalid_box:
        layer, image = divmod(problem, inputs.shape[0])
        box = layers[layer]["pred_boxes"][image, query].tolist()
        raise fault.error(f"{place} is {box}, {_BOX_RULE}")
    raise fault.error(f"{place} overflows")
