"""Several processes, as ``torchrun`` starts them: one line each, on top of torch.distributed."""

import os
from typing import Any

import torch
import torch.distributed as dist


def start(device: str | None = None) -> torch.device:
    """Join the process group if torchrun started this process, and choose the device.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; default: a GPU if there is one. Under
            torchrun each process takes the GPU of its local rank, with NCCL; gloo on the CPU.

    Raises:
        ValueError: no such device here.
    """
    gpus = torch.cuda.device_count()
    kind, _, index = (device or ("cuda" if gpus else "cpu")).partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"unknown device {device!r}, expected cpu, cuda or cuda:INDEX")
    several = "WORLD_SIZE" in os.environ
    if several and not index:
        index = os.environ.get("LOCAL_RANK", "0")
    if kind == "cuda" and int(index or 0) >= gpus:
        raise ValueError(f"device {device or 'cuda'} is not here: torch sees {gpus} CUDA devices")
    chosen = torch.device("cpu") if kind == "cpu" else torch.device("cuda", int(index or 0))
    if kind == "cuda":
        torch.cuda.set_device(chosen)
    if several and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return chosen


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 is the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return any(gather(flag))
