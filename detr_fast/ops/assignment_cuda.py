"""linear_sum_assignment on CUDA tensors, solved on their GPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast import _C
from detr_fast.ops.library import current_stream


def solve_batch(cost: Tensor, maximize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Solve costs [P, R, C] on the current stream, without a wait.

    Returns:
        row_index and col_index, [P, min(R, C)], and int32 [P]: the ``_C.Status`` of each problem.
        Where that is not ``ok``, pair k is (k, k).
    """
    count, rows, cols = cost.shape
    tall = rows > cols
    matrices = _readable(cost.transpose(1, 2) if tall else cost, maximize)
    sizes = (min(rows, cols), max(rows, cols))
    index, status = _launch(matrices, count, [matrices.data_ptr()], [sizes], [tall])
    return *index.view(2, count, sizes[0]), status


def solve_ragged(
    costs: Sequence[Tensor], maximize: bool
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Solve like :func:`solve_batch`, for matrices of differing shapes on one device."""
    dtype = torch.float64 if any(_is_double(cost) for cost in costs) else torch.float32
    tall = [cost.shape[0] > cost.shape[1] for cost in costs]
    matrices = [
        _readable((cost.T if turned else cost).to(dtype), maximize)
        for cost, turned in zip(costs, tall, strict=True)
    ]
    shapes = [tuple(matrix.shape) for matrix in matrices]
    addresses = [matrix.data_ptr() for matrix in matrices]
    index, status = _launch(matrices[0], len(costs), addresses, shapes, tall)
    sizes = [rows for rows, _ in shapes]
    parts = (half.split_with_sizes(sizes) for half in index)
    return list(zip(*parts, strict=True)), status


def _is_double(cost: Tensor) -> bool:
    """Return whether float32 could round the costs, as it does large integers."""
    return cost.dtype == torch.float64 or not cost.is_floating_point()


def _readable(cost: Tensor, maximize: bool) -> Tensor:
    cost = cost.detach().to(torch.float64 if _is_double(cost) else torch.float32)
    return (-cost if maximize else cost).contiguous()


def _launch(
    like: Tensor,  # has the costs' device and dtype
    problems: int,  # P
    addresses: list[int],  # contiguous: P, or one of [P, rows, cols]; as many entries below
    shapes: list[tuple[int, int]],  # rows <= cols
    transposed: list[bool],
) -> tuple[Tensor, Tensor]:  # [2, sum of rows] int64, [P] int32
    device = like.device
    rows, cols = [shape[0] for shape in shapes], [shape[1] for shape in shapes]
    pairs = sum(rows) if len(rows) == problems else rows[0] * problems
    index = torch.empty(2, pairs, dtype=torch.int64, device=device)
    status = torch.empty(problems, dtype=torch.int32, device=device)
    workspace = _C.cuda.assignment_workspace(device.index or 0, max(rows), max(cols))
    memory = torch.empty(problems * workspace, dtype=torch.uint8, device=device)
    _C.cuda.linear_sum_assignment(
        problems=problems,
        cost=addresses,
        rows=rows,
        cols=cols,
        is_double=like.dtype == torch.float64,
        transposed=transposed,
        row_index=index[0].data_ptr(),
        col_index=index[1].data_ptr(),
        status=status.data_ptr(),
        memory=memory.data_ptr() if workspace else 0,
        device=device.index or 0,
        stream=current_stream(device),
    )
    return index, status
