"""The assignment problem, on arrays and tensors of any kind."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from detr_fast import _C
from detr_fast.ops import assignment_cuda
from detr_fast.ops.library import has_kernels

Index = np.ndarray | Tensor  # int64

_MESSAGES = {  # SciPy's own, where SciPy has one
    _C.Status.invalid_cost: "matrix contains invalid numeric entries",
    _C.Status.infeasible: "cost matrix is infeasible",
    _C.Status.too_large: "matrix has more than 2**31 - 1 rows or columns",
}


@overload
def linear_sum_assignment(
    cost_matrix: Tensor, maximize: bool = ..., *, validate: bool = ...
) -> tuple[Tensor, Tensor]: ...
@overload
def linear_sum_assignment(
    cost_matrix: np.ndarray, maximize: bool = ..., *, validate: bool = ...
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def linear_sum_assignment(
    cost_matrix: list[Tensor] | tuple[Tensor, ...], maximize: bool = ..., *, validate: bool = ...
) -> list[tuple[Tensor, Tensor]]: ...
@overload
def linear_sum_assignment(
    cost_matrix: list[np.ndarray] | tuple[np.ndarray, ...],
    maximize: bool = ...,
    *,
    validate: bool = ...,
) -> list[tuple[np.ndarray, np.ndarray]]: ...
@overload
def linear_sum_assignment(
    cost_matrix: Any, maximize: bool = ..., *, validate: bool = ...
) -> Any: ...
def linear_sum_assignment(
    cost_matrix: Any, maximize: bool = False, *, validate: bool = True
) -> tuple[Index, Index] | list[tuple[Index, Index]]:
    """Solve the linear sum assignment problem, as ``scipy.optimize.linear_sum_assignment`` does.

    Args:
        cost_matrix: one of

            - a matrix [R, C]: anything NumPy converts to a 2-D array of real numbers, or a torch
              tensor of any real dtype on any device;
            - a batch [P, R, C] of P problems of one shape, array or tensor;
            - a list or tuple of 2-D arrays or tensors whose shapes may differ: the ragged form.
              (A list of numbers, or of 1-D arrays, is converted by NumPy.)

            Costs may be ``inf`` to forbid a pair (``-inf`` if ``maximize``). They are compared in
            float64, whatever their dtype; on a GPU, float64 costs beyond 4e307 may overflow.
        maximize: look for the greatest total instead of the least.
        validate: whether to wait for a GPU that solves the problem, to raise the fault it found.
            If not, a problem without a solution gets the pairs (0, 0), (1, 1) and so on. Problems
            solved on the CPU are always checked.

    Returns:
        ``(row_index, col_index)``, int64, row indices ascending: [min(R, C)] for a matrix,
        [P, min(R, C)] for a batch; for the ragged form a list with one such pair per problem.
        NumPy arrays, or for a torch tensor, torch tensors on its device. The total is optimal;
        where several assignments share it, which one is returned is not specified.

    Raises:
        ValueError: with SciPy's messages, if a matrix is not 2-D, holds NaN or ``-inf`` (``inf`` if
            ``maximize``), or allows no complete assignment. For a batch or a list the message
            starts with ``cost[p]``, the problem at fault.
        TypeError: for complex numbers.

    The algorithm is that of Jonker and Volgenant (1987) as adapted to rectangular matrices by
    Crouse (2016). All problems are solved in one call of compiled code, which releases the GIL and
    uses up to ``torch.get_num_threads()`` threads, as the amount of work justifies. CUDA tensors
    are solved on their GPU, and so is a list of CUDA tensors, which must all be on one GPU.
    """
    cost = cost_matrix
    if isinstance(cost, (list, tuple)) and any(_ndim(item) >= 2 for item in cost):
        if all(isinstance(item, Tensor) and has_kernels(item) for item in cost):
            return _solve_ragged_on_gpu(cost, maximize, validate)
        return _solve_ragged(cost, maximize)
    if isinstance(cost, Tensor) and has_kernels(cost):
        return _solve_on_gpu(cost, maximize, validate)
    matrix = _to_matrix(cost)
    if matrix.ndim not in (2, 3):
        raise ValueError(f"expected a matrix (2-D array), got a {matrix.ndim} array")
    fault, pair = _C.linear_sum_assignment(matrix, bool(maximize), torch.get_num_threads())
    if fault is not None:
        _raise(fault[0], fault[1] if matrix.ndim == 3 else None)
    return _like(cost, *pair)


def _solve_on_gpu(cost: Tensor, maximize: bool, validate: bool) -> tuple[Tensor, Tensor]:
    if cost.dim() not in (2, 3):
        raise ValueError(f"expected a matrix (2-D array), got a {cost.dim()} array")
    _refuse_complex(cost)
    named = cost.dim() == 3
    problems = cost if named else cost[None]
    if problems.numel() == 0:
        shape = (*cost.shape[:-2], min(cost.shape[-2:]))
        return tuple(cost.new_empty(shape, dtype=torch.int64) for _ in range(2))
    rows, cols, status = assignment_cuda.solve_batch(problems, maximize)
    if validate:
        _raise_first(status, named)
    return (rows, cols) if named else (rows[0], cols[0])


def _solve_ragged_on_gpu(
    costs: Sequence[Tensor], maximize: bool, validate: bool
) -> list[tuple[Tensor, Tensor]]:
    for p, cost in enumerate(costs):
        if cost.dim() != 2:
            raise ValueError(f"cost[{p}]: expected a matrix (2-D array), got a {cost.dim()} array")
        if cost.device != costs[0].device:
            raise ValueError(f"cost[{p}] is on {cost.device}, but cost[0] on {costs[0].device}")
        _refuse_complex(cost)
    pairs, status = assignment_cuda.solve_ragged(costs, maximize)
    if validate:
        _raise_first(status, named=True)
    return pairs


def _refuse_complex(cost: Tensor) -> None:
    if cost.is_complex():
        raise TypeError(f"costs must be real, not {cost.dtype}")


def _raise_first(status: Tensor, named: bool) -> None:
    for problem, code in enumerate(status.tolist()):
        if code:
            _raise(_C.Status(code), problem if named else None)


def _solve_ragged(costs: Sequence[Any], maximize: bool) -> list[tuple[Index, Index]]:
    threads = torch.get_num_threads()
    solved = _C.linear_sum_assignments(list(costs), bool(maximize), threads)
    in_place = solved is not None
    if not in_place:
        matrices = []
        for p, cost in enumerate(costs):
            matrix = _to_matrix(cost)
            if matrix.ndim != 2:
                raise ValueError(
                    f"cost[{p}]: expected a matrix (2-D array), got a {matrix.ndim} array"
                )
            matrices.append(matrix)
        dtype = np.result_type(*{matrix.dtype for matrix in matrices})
        matrices = [matrix.astype(dtype, copy=False) for matrix in matrices]
        solved = _C.linear_sum_assignments(matrices, bool(maximize), threads)
    fault, pairs = solved
    if fault is not None:
        _raise(*fault)
    if in_place:  # all are arrays
        return pairs
    return [_like(cost, *pair) for cost, pair in zip(costs, pairs, strict=True)]


def _raise(status: _C.Status, problem: int | None) -> None:
    if status == _C.Status.out_of_memory:
        raise MemoryError("no memory for a copy of the matrix")
    text = _MESSAGES[status]
    raise ValueError(text if problem is None else f"cost[{problem}]: {text}")


def _to_matrix(cost: Any) -> np.ndarray:
    """Return the values as a contiguous float32 or float64 array, copied only if necessary."""
    if isinstance(cost, Tensor):
        tensor = cost.detach().cpu().resolve_neg()
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            tensor = tensor.float()  # NumPy has no bfloat16
        array = tensor.numpy()
    elif hasattr(cost, "__array__"):
        array = np.asarray(cost)
    else:
        array = np.asarray(cost, dtype=np.float64)
    # float32 stays: the solver widens each entry as it reads it, without rounding.
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype != np.float32:
        array = array.astype(np.float64, casting="safe", copy=False)
    return array if array.flags.c_contiguous and array.flags.aligned else array.copy()


def _ndim(item: Any) -> int:
    return item.ndim if isinstance(item, (np.ndarray, Tensor)) else 0


def _like(cost: Any, rows: np.ndarray, cols: np.ndarray) -> tuple[Index, Index]:
    if isinstance(cost, Tensor):
        return torch.from_numpy(rows).to(cost.device), torch.from_numpy(cols).to(cost.device)
    return rows, cols
