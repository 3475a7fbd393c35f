"""The rank of this process, and exchange between processes; also for a single process."""

from typing import Any

import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's number; process 0 writes the files."""
    return dist.get_rank() if _is_joined() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _is_joined() else 1


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def broadcast(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def mean(values: Tensor) -> Tensor:
    """Return the elementwise mean over all processes; ``values`` are overwritten."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def gather(value: Any) -> list[Any]:
    """Return all ranks' values, in the order of ranks, on rank 0; an empty list on the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, dst=0)
    return values or []
