"""What the profiler sees of a call: how often the host waits for a GPU, and each kernel's time.

A profiler may stay attached once it has been used, so that nothing is timed after it.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType

WAITING = (
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
)


def waits(call: Callable[[], object]) -> int:
    """How often the host waits for the GPU in one call.

    Raises:
        RuntimeError: the profiler does not show even the wait of a call that is known to wait.
    """
    own = _profilers_own()
    call()
    return blocking_calls(_profiled(call), own)


def blocking_calls(calls: Mapping[str, int], own: Mapping[str, int]) -> int:
    """How many of the runtime's calls wait for the GPU.

    Args:
        calls: counts by name, as profiled.
        own: the same, profiled with nothing to do: what the profiler itself calls.
    """
    return sum(max(0, calls.get(name, 0) - own.get(name, 0)) for name in WAITING)


@functools.cache
def _profilers_own() -> Mapping[str, int]:
    _profiled(lambda: None)  # what it does once only
    own = _profiled(lambda: None)
    number = torch.zeros(1, device="cuda")
    if blocking_calls(_profiled(number.item), own) < 1:
        raise RuntimeError("the profiler shows no wait of Tensor.item: waits cannot be counted")
    return own


def _profiled(call: Callable[[], object]) -> Mapping[str, int]:
    """The runtime's calls by name."""
    return {event.key: event.count for event in _events(call)}


def kernel_times(call: Callable[[], object], calls: int = 3) -> str:
    """Microseconds of each of this project's kernels in one call, the shortest of some: its name
    and time, one after the other."""

    def to_the_end() -> None:
        call()
        torch.cuda.synchronize()

    times: dict[str, list[float]] = {}
    for _ in range(calls):
        events = [e for e in _events(to_the_end) if e.device_type == DeviceType.CUDA]
        for name, taken in by_kernel({e.key: e.self_device_time_total for e in events}).items():
            times.setdefault(name, []).append(taken)
    return ", ".join(f"{name} {min(taken):.1f}" for name, taken in times.items())


def by_kernel(times: Mapping[str, float]) -> dict[str, float]:
    """The times of this project's kernels, by names without namespaces and template arguments."""
    ours: dict[str, float] = {}
    for name, taken in times.items():
        plain = name.replace("(anonymous namespace)::", "")
        if found := re.search(r"\bdetr_fast::(?:\w+::)*(\w+)", plain):
            ours[found[1]] = ours.get(found[1], 0.0) + taken
    return ours


def _events(call: Callable[[], object]) -> Sequence[Any]:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    torch.cuda.synchronize()
    return profiler.key_averages()
