"""Each contender of a training step in a process of its own, with its own memory and allocator."""

import multiprocessing
import os
import resource
import statistics
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.step_contenders import CONTENDERS, TRANSFORMERS, Case, Contender
from detr_fast.training.heap import keep_freed_memory

KEPT, DEFAULT = "kept", "default"  # what an allocator does with freed memory

_contender: Contender  # of this process
_before: float  # MiB that it had before the contender
_page_faults: list[float] = []  # of each step


class ProcessContender:
    """A contender as the benchmark sees it, at work elsewhere while all others sleep.

    Args:
        case: what is trained.
        name: the contender's.
        allocator: ``"kept"``, as ``detr-fast train`` runs, or ``"default"``, which returns freed
            memory to the system.
    """

    def __init__(self, case: Case, name: str, allocator: str) -> None:
        self._process = ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            _start,
            (case, name, allocator == KEPT, torch.get_num_threads()),
        )

    def total(self) -> float:
        """The loss, by which contenders are compared."""
        return self._process.submit(_total).result()

    def timed(self, steps: int) -> dict[str, float]:
        """Some steps; seconds of each phase per step."""
        return self._process.submit(_timed, steps).result()

    def page_faults(self) -> float:
        """Pages that the system had to provide in a step, the median so far."""
        return self._process.submit(_faults).result()

    def peak_mb(self) -> float:
        """The most memory so far, in MiB: weights, gradients, optimizer and activations."""
        return self._process.submit(_peak).result()

    def close(self) -> None:
        self._process.shutdown()


def _start(case: Case, name: str, keep: bool, threads: int) -> None:
    global _contender, _before
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if keep:
        keep_freed_memory()
    torch.set_num_threads(threads)
    if name == TRANSFORMERS:
        import transformers.models.detr.modeling_detr  # noqa: F401
    _before = _resident("VmRSS")
    _contender = CONTENDERS[name](case)


def _end_with_parent() -> None:
    """A parent that was killed tells nobody."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _total() -> float:
    return _contender.total()


def _timed(steps: int) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    phases = _contender.timed(steps)
    _page_faults.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps)
    return phases


def _faults() -> float:
    return statistics.median(_page_faults)


def _peak() -> float:
    return _resident("VmHWM") - _before


def _resident(entry: str) -> float:
    """Of this process, in MiB: now (VmRSS) or at most (VmHWM); 0 where Linux does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = [line for line in lines if line.startswith(entry)]
    return int(found[0].split()[1]) / 1024 if found else 0.0
