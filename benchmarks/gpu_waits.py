"""How often the host waits for a GPU: blocking calls that the profiler saw.

A profiler may stay attached once it has been used, so that nothing is timed after it.
"""

import functools
from collections.abc import Callable, Mapping

import torch

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
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    torch.cuda.synchronize()
    return {event.key: event.count for event in profiler.key_averages()}
