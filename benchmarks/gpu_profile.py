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


def waits_and_kernels(call: Callable[[], object], calls: int = 20) -> tuple[int, str]:
    """How often the host waits in one call, and the microseconds of each of this project's kernels
    in it: its name and time, one after the other.

    Both are means over several calls in one session, of waits rounded up, since a profiler may lose
    the records of a session's first kernels.

    Raises:
        RuntimeError: as :func:`waits`.
    """
    own = _profilers_own()
    call()

    def several() -> None:
        for _ in range(calls):
            call()

    events = _events(several)
    of_kernels = [e for e in events if e.device_type == DeviceType.CUDA]
    times = {e.key: (e.self_device_time_total, e.count) for e in of_kernels}
    return (
        -(-blocking_calls({e.key: e.count for e in events}, own) // calls),
        ", ".join(f"{name} {taken:.1f}" for name, taken in by_kernel(times, calls).items()),
    )


def _profilers_own() -> Mapping[str, int]:
    own, problem = _profiler()
    if problem:
        raise RuntimeError(problem)
    return own


@functools.cache  # also what is wrong with it, rather than find it for each row
def _profiler() -> tuple[Mapping[str, int], str]:
    """The runtime's calls of the profiler itself, and why waits cannot be counted, if so."""
    _profiled(lambda: None)  # what it does once only
    own = _profiled(lambda: None)
    number = torch.zeros(1, device="cuda")
    seen = blocking_calls(_profiled(number.item), own) >= 1
    blind = "the profiler shows no wait of Tensor.item: waits cannot be counted"
    return own, "" if seen else blind


def _profiled(call: Callable[[], object]) -> Mapping[str, int]:
    """The runtime's calls by name."""
    return {event.key: event.count for event in _events(call)}


def by_kernel(records: Mapping[str, tuple[float, int]], calls: int) -> dict[str, float]:
    """The time per call of this project's kernels, by names without namespaces and template
    arguments.

    Args:
        records: by name the time of all records, and how many these are. Some may be missing.
    """
    ours: dict[str, float] = {}
    for name, (taken, count) in records.items():
        plain = name.replace("(anonymous namespace)::", "")
        if found := re.search(r"\bdetr_fast::(?:\w+::)*(\w+)", plain):
            of_call = taken / count * max(1, round(count / calls))
            ours[found[1]] = ours.get(found[1], 0.0) + of_call
    return ours


def _events(call: Callable[[], object]) -> Sequence[Any]:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    torch.cuda.synchronize()
    return profiler.key_averages()
