"""How a GPU is timed: with events, the cache cold, the launches queued before the clock starts."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

FLUSH_BYTES = 256 << 20  # more than any GPU's second-level cache
HOLD_CYCLES = 1_000_000  # keeps the GPU busy while the host launches


def measure(
    variants: Mapping[str, Callable[[int], object]],
    rounds: int = 30,
    warm_up: int = 5,
) -> dict[str, dict[str, float]]:
    """Times each variant, called with the number of the round: inputs shall vary as batches do.

    Variants take turns. A round first overwrites the cache. For the GPU's time the call is queued
    behind a kernel that waits, so that launches do not count, unless the call itself waits for the
    GPU. For the host's time the GPU has nothing to do, and the call is not waited for.

    Returns:
        For each variant medians and percentiles, in microseconds: ``gpu_us``, ``gpu_p20_us``,
        ``gpu_p80_us``, ``host_us``, and the number of ``calls``.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for call in variants.values():
        for k in range(warm_up):
            call(k)
    torch.cuda.synchronize()
    names = list(variants)
    gpu: dict[str, list[float]] = {name: [] for name in names}
    host: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        shift = k % len(names)
        for name in names[shift:] + names[:shift]:
            gpu[name].append(_gpu_time(variants[name], k, flush))
            host[name].append(_host_time(variants[name], k))
    result = {}
    for name in names:
        p20, p50, p80 = np.percentile(gpu[name], [20, 50, 80])
        result[name] = {
            "gpu_us": round(p50, 1),
            "gpu_p20_us": round(p20, 1),
            "gpu_p80_us": round(p80, 1),
            "host_us": round(float(np.median(host[name])), 1),
            "calls": rounds,
        }
    return result


def _gpu_time(call: Callable[[int], object], number: int, flush: torch.Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.fill_(number % 256)
    torch.cuda._sleep(HOLD_CYCLES)
    start.record()
    kept = call(number)
    end.record()
    torch.cuda.synchronize()
    del kept
    return start.elapsed_time(end) * 1e3


def _host_time(call: Callable[[int], object], number: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    kept = call(number)
    taken = time.perf_counter() - start
    torch.cuda.synchronize()
    del kept
    return taken * 1e6


def bandwidth(rounds: int = 10, size: int = 1 << 30) -> float:
    """Bytes per second of a large copy, read and written: the ceiling to compare kernels with."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times: list[float] = []
    for k in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        if k:
            times.append(start.elapsed_time(end) / 1e3)
    return 2 * size / float(np.median(times))


def waits(call: Callable[[], object]) -> int:
    """How often the host waits for the GPU in one call: blocking calls that the profiler saw."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    torch.cuda.synchronize()
    return blocking_calls({event.key: event.count for event in profiler.key_averages()})


def blocking_calls(calls: Mapping[str, int]) -> int:
    """How many of the runtime's calls wait for the GPU, the profiler's own at its end left out.

    Args:
        calls: counts by name, as profiled.
    """
    waiting = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
    own = max(0, calls.get("cudaDeviceSynchronize", 0) - 1)
    return own + sum(calls.get(name, 0) for name in waiting)


def rows_of(
    variants: Mapping[str, Callable[[int], object]], rounds: int, **about: object
) -> list[dict]:
    """A row of each variant: what is given of the problem, its times, and its waits."""
    return [
        {
            **about,
            "variant": name,
            **figure,
            "waits": waits(lambda call=variants[name]: call(0)),
        }
        for name, figure in measure(variants, rounds=rounds).items()
    ]
