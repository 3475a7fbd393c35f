"""How a GPU is timed: with events, the cache cold, the launches queued before the clock starts."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.failures import Failures

FLUSH_BYTES = 256 << 20  # more than any GPU's second-level cache
# The GPU is kept busy for twice the time that the host took for the same call, and some more.
HOLD_MARGIN, HOLD_SPARE_US = 2.0, 100.0
MOST_HOLD_US = 20_000.0  # calls that wait for the GPU are never queued, however long it is held
# A call that takes the host longer waits for the GPU, or computes by itself: a few are enough.
SLOW_US, SLOW_CALLS = 10_000.0, 5

Call = Callable[[int], object]  # given the number of the round: inputs vary as batches do


@dataclass(frozen=True)
class Problem:
    """What is timed together."""

    title: str
    about: Mapping[str, object]  # what a row says of it
    variants: Mapping[str, Call]
    # Given the results of round 0 by variant: with whose something is wrong, and what.
    wrong: Callable[[Mapping[str, object]], Mapping[str, str]]
    steps: Callable[[], int]  # counts the longest chain of dependent ones; slow, on the host
    rounds: int | None = None  # at most, of one that takes long


def rows_of(problem: Problem, rounds: int, failures: Failures) -> list[dict]:
    """A row for each variant that is right and raises nothing; the others are among ``failures``.

    ``waits``, ``kernels`` and ``steps`` are left empty: nothing is profiled before all is timed.
    """
    results = {}
    for name, call in problem.variants.items():
        try:
            results[name] = call(0)
            torch.cuda.synchronize()
        except Exception as error:
            failures.add(f"{problem.title}, {name}", error)
            results.pop(name, None)
    wrong = problem.wrong(results)
    for name, what in wrong.items():
        failures.add(f"{problem.title}, {name}", AssertionError(what))
    sound = {name: problem.variants[name] for name in results if name not in wrong}
    del results
    rounds = min(rounds, problem.rounds or rounds)
    figures = measure(sound, rounds, problem.title, failures)
    return [
        {**problem.about, "variant": name, **figure, "waits": "", "kernels": "", "steps": ""}
        for name, figure in figures.items()
    ]


def measure(
    variants: Mapping[str, Call], rounds: int, title: str, failures: Failures, warm_up: int = 5
) -> dict[str, dict[str, float]]:
    """Times each variant.

    Variants take turns. A round first overwrites the cache. For the GPU's time the call is queued
    behind a kernel that waits, so that launches do not count, unless the call itself waits for the
    GPU. For the host's time the GPU has nothing to do, and the call is not waited for. A variant
    whose calls take the host more than ``SLOW_US`` is called ``SLOW_CALLS`` times only.

    Returns:
        For each variant that raised nothing medians and percentiles, in microseconds: ``gpu_us``,
        ``gpu_p20_us``, ``gpu_p80_us``, ``host_us``, the number of ``calls``, and how many of them
        were ``queued``: the host was done before the GPU began.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    times = {name: _Times(call) for name, call in variants.items()}

    def attempt(name: str, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:
            failures.add(f"{title}, {name}", error)
            del times[name]

    for name, taken in list(times.items()):
        attempt(name, lambda taken=taken: taken.warm_up(warm_up))
    rate = _cycles_per_us()
    for k in range(rounds):
        names = list(times)
        shift = k % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            if k < SLOW_CALLS or not times[name].is_slow:
                attempt(name, lambda taken=times[name], k=k: taken.time(k, flush, rate))
    return {name: taken.figures() for name, taken in times.items()}


class _Times:
    """Of one variant, in microseconds."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.gpu: list[float] = []
        self.host: list[float] = []
        self.queued = 0

    def warm_up(self, calls: int) -> None:
        self.time_host(0)  # loads kernels and takes memory
        # Twice the same: some compile for each new size, and are slow only then.
        self.is_slow = min(self.time_host(1) for _ in range(2)) > SLOW_US
        taken = [self.time_host(k) for k in range(1, 2 if self.is_slow else calls)]
        self.hold_us = min(HOLD_MARGIN * max(taken) + HOLD_SPARE_US, MOST_HOLD_US)

    def time(self, number: int, flush: torch.Tensor, cycles_per_us: float) -> None:
        self.gpu.append(self.time_gpu(number, flush, round(self.hold_us * cycles_per_us)))
        self.host.append(self.time_host(number))

    def time_gpu(self, number: int, flush: torch.Tensor, hold_cycles: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.fill_(number % 256)
        torch.cuda._sleep(hold_cycles)
        start.record()
        kept = self.call(number)
        end.record()
        self.queued += not start.query()  # else the GPU began, and may have waited for the host
        torch.cuda.synchronize()
        del kept
        return start.elapsed_time(end) * 1e3

    def time_host(self, number: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        kept = self.call(number)
        taken = time.perf_counter() - start
        torch.cuda.synchronize()
        del kept
        return taken * 1e6

    def figures(self) -> dict[str, float]:
        p20, p50, p80 = np.percentile(self.gpu, [20, 50, 80])
        return {
            "gpu_us": round(p50, 1),
            "gpu_p20_us": round(p20, 1),
            "gpu_p80_us": round(p80, 1),
            "host_us": round(float(np.median(self.host)), 1),
            "calls": len(self.gpu),
            "queued": self.queued,
        }


def _cycles_per_us(cycles: int = 2_000_000) -> float:
    """How fast the GPU counts while it is made to wait, at the clock that it runs at now."""
    times: list[float] = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return cycles / min(times)


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
