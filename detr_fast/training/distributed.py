"""Training in several processes, as ``torchrun`` starts them: helpers for torch.distributed."""

import contextlib
import hashlib
import inspect
import os
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detr_fast.processes import mean, world_size

# torch 2.15 renamed the argument, and warns about the old name.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class LostProcess(RuntimeError):
    """Another process of the run is gone, so that the run cannot continue."""


def start(device: str | None = None) -> torch.device:
    """Join the process group if torchrun started this process, and choose the device.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; default: a GPU if there is one. Under
            torchrun each process takes the GPU of its local rank. Tensors on GPUs are reduced with
            NCCL, everything else with gloo.

    Raises:
        ValueError: an unknown device, or one that this machine lacks.
    """
    gpus = torch.cuda.device_count()
    kind, _, index = (device or ("cuda" if gpus else "cpu")).partition(":")
    if kind not in ("cpu", "cuda") or (index and not (index.isdigit() and kind == "cuda")):
        raise ValueError(f"unknown device {device!r}, expected cpu, cuda or cuda:INDEX")
    several = "WORLD_SIZE" in os.environ
    if several and not index:
        index = os.environ.get("LOCAL_RANK", "0")
    if kind == "cuda" and int(index or 0) >= gpus:
        many = "; start at most that many processes per machine" if several and gpus else ""
        raise ValueError(
            f"device cuda:{int(index or 0)} is not available: torch sees {gpus} GPU"
            f"{'s' if gpus != 1 else ''}{many}"
        )
    chosen = torch.device("cpu") if kind == "cpu" else torch.device("cuda", int(index or 0))
    if kind == "cuda":
        torch.cuda.set_device(chosen)
    if several and not dist.is_initialized():
        _join("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    return chosen


def _join(backend: str) -> None:
    store, index, size = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun keeps its store when it restarts the processes of a machine: the prefix hides
        # the addresses of those that are gone. (With several machines, each counts its own
        # restarts, so the number is useless.)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=index, world_size=size)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def local_world_size() -> int:
    """Return how many of the processes run on this machine, according to torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model as it is trained: its gradients become the mean over all processes.

    They are reduced during the backward pass, in buckets that are laid out once (``static_graph``)
    and that the gradients are views of, without a copy. Buffers, such as batch statistics, stay
    separate in each process until ``sync_buffers``.
    """
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        static_graph=True,
        gradient_as_bucket_view=True,
        **{_SYNC_BUFFERS: False},
    )


def no_sync(
    model: nn.Module, wanted: bool, first_step: bool
) -> contextlib.AbstractContextManager[None]:
    """Return a context in which backward passes skip the reduction of gradients, if ``wanted``.

    Use it for all but the last of several passes of one step. In the very first step every pass is
    reduced, with the same result: the first backward pass lays out the static graph, and must not
    be one without reduction.
    """
    if wanted and not first_step and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def sync_buffers(*modules: nn.Module) -> None:
    """Copy rank 0's buffers to all processes, so that one model is evaluated, saved and resumed."""
    if world_size() > 1:
        seen = {id(buffer): buffer for module in modules for buffer in module.buffers()}
        for work in [dist.broadcast(buffer, src=0, async_op=True) for buffer in seen.values()]:
            work.wait()


def mean_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the means of scalar tensors over all processes, with one reduction."""
    if world_size() == 1:
        return dict(values)
    means = mean(torch.stack([value.float() for value in values.values()]))
    return dict(zip(values, means, strict=True))


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return whether each flag is set on any rank, with one reduction."""
    if world_size() == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return tuple(map(bool, votes.tolist()))


def is_process_lost(error: BaseException) -> bool:
    """Return whether this error of torch.distributed means that another process is gone."""
    if isinstance(error, (LostProcess, dist.DistBackendError, dist.DistNetworkError)):
        return True
    # gloo has no error type of its own; its messages contain its file names.
    several = "WORLD_SIZE" in os.environ
    return isinstance(error, RuntimeError) and several and "gloo/" in str(error)


def is_first_to_report(line: str) -> bool:
    """Return whether no other process of the run has reported ``line``, so it is printed once.

    This also works where processes are gone: torchrun keeps the list.
    """
    if world_size() == 1:
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        digest = hashlib.sha1(line.encode()).hexdigest()
        return store.add(f"detr_fast/said/{digest}", 1) == 1
    except Exception:  # whatever went wrong: better printed twice than never
        return True
