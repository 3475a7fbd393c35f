"""The assignment solvers of other projects, each in every form that might be its fastest.

A form is a function of the solver, the layout of the matrices (rows are targets, or rows are
queries) and, with several threads, a pool of them. :func:`fastest` tries all forms on the problems
at hand and keeps the quickest one that is right, so that each rival runs at its best.

The packages lap and lapx share the module name ``lap``. Either may be installed as usual; for both
in one run, install into folders of their own, ``pip install --no-deps --target build/rivals/lap
lap`` (and likewise ``lapx``, ``torch-linear-assignment``).
"""

import functools
import importlib
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from detr_fast import linear_sum_assignment

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "rivals"
PACKAGES = ("scipy", "lap", "lapx", "torch-linear-assignment")

Matrices = Sequence[np.ndarray]  # of [M, N], or [N, M] if transposed; one array if all of one shape
Pairs = Callable[[object, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Form:
    """One way to call a solver.

    Only ``solve`` is timed: ``each`` turns its answer into one result per matrix and ``pairs`` such
    a result into row and column indices, which a user of the solver may not need.
    """

    name: str
    solve: Callable[[Matrices], object]
    pairs: Pairs
    transposed: bool = False  # rows are queries, as in the published matcher
    tensors: bool = False  # takes torch tensors
    batch: bool = False  # takes one array [P, R, C]
    each: Callable[[object], Iterable[object]] = iter

    @property
    def described(self) -> str:
        return f"{self.name}, rows are {'queries' if self.transposed else 'targets'}"


@dataclass
class Rivals:
    """What is installed: solvers by name with their forms, and the packages' versions."""

    forms: dict[str, list[Form]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


@functools.cache
def load(threads: int, folder: Path = FOLDER) -> Rivals:
    """All rivals that are installed, in ``folder`` or in this environment."""
    rivals = Rivals()
    makers = {"scipy": _scipy, "lap": _lap, "lapx": _lapx, "torch-linear-assignment": _torch}
    for package in PACKAGES:
        with _importable(package, folder) as version:
            if not version:
                rivals.missing.append(package)
            else:
                name = "SciPy" if package == "scipy" else package
                rivals.forms[name] = list(makers[package](threads))
            rivals.versions[package] = version
    return rivals


@contextmanager
def _importable(package: str, folder: Path) -> Iterator[str]:
    """Lets imports find ``package``, alone under its module name; gives its version or ''."""
    path = str(folder / package)
    places = [path] if (folder / package).is_dir() else sys.path
    found = list(importlib.metadata.distributions(name=package, path=places))
    for name in [name for name in sys.modules if name.split(".")[0] == "lap"]:
        del sys.modules[name]
    sys.path.insert(0, path)
    importlib.invalidate_caches()
    try:
        yield found[0].version if found else ""
    finally:
        sys.path.remove(path)


def _scipy(threads: int) -> Iterator[Form]:
    from scipy.optimize import linear_sum_assignment as solve

    yield from _one_by_one("linear_sum_assignment", solve, _as_given, threads)


def _lap(threads: int) -> Iterator[Form]:
    import lap

    lapjv = lap.lapjv  # looked up now: the module's name is taken by lapx later on
    yield from _one_by_one(
        "lapjv",
        lambda cost: lapjv(cost, extend_cost=True, return_cost=False),
        lambda result, cost: _matched(result[0]),
        threads,
    )


def _lapx(threads: int) -> Iterator[Form]:
    import lap

    lapjvx = lap.lapjvx
    yield from _one_by_one(
        "lapjvx",
        lambda cost: lapjvx(cost, extend_cost=True, return_cost=False),
        _as_given,
        threads,
    )
    for name in ("lapjvr", "lapjvh"):
        for precision in ("native", "float64"):
            one, many = getattr(lap, name), getattr(lap, f"{name}_batch")
            options = {"extend_cost": True, "return_cost": False, "precision": precision}
            yield from _one_by_one(
                f"{name} {precision}",
                lambda cost, one=one, options=options: one(cost, **options),
                _as_given,
                threads,
            )
            for transposed in (False, True):
                yield Form(
                    f"{name}_batch {precision}",
                    lambda costs, many=many, options=options: many(
                        costs, n_threads=threads, **options
                    ),
                    _as_given,
                    transposed,
                    batch=True,
                    each=_transpose,
                )


def _torch(threads: int) -> Iterator[Form]:
    from torch_linear_assignment import batch_linear_assignment

    yield from _one_by_one(
        "batch_linear_assignment of 1",
        lambda cost: batch_linear_assignment(cost[None])[0],
        lambda result, cost: _matched(result.numpy()),
        threads,
        tensors=True,
    )
    for transposed in (False, True):
        yield Form(
            "batch_linear_assignment",
            batch_linear_assignment,
            lambda result, cost: _matched(result.numpy()),
            transposed,
            tensors=True,
            batch=True,
        )


def _one_by_one(
    name: str,
    solve: Callable[[np.ndarray], object],
    pairs: Pairs,
    threads: int,
    tensors: bool = False,
) -> Iterator[Form]:
    """A solver of one problem: in a loop and, with several threads, in a pool of them."""

    def loop(matrices: Matrices) -> list[object]:
        return [solve(matrix) for matrix in matrices]

    for transposed in (False, True):
        yield Form(f"{name}, loop", loop, pairs, transposed, tensors)
        if threads > 1:
            pool = ThreadPoolExecutor(threads)

            def pooled(matrices: Matrices, pool=pool) -> list[object]:
                size = -(-len(matrices) // (4 * threads))  # few tasks: each costs some microseconds
                parts = [matrices[i : i + size] for i in range(0, len(matrices), size)]
                return list(chain.from_iterable(pool.map(loop, parts)))

            yield Form(f"{name}, {threads} Python threads", pooled, pairs, transposed, tensors)


def _transpose(result: tuple) -> Iterable[tuple]:  # (rows of all, columns of all)
    return zip(*result, strict=True)


def _as_given(result: tuple, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return result


def _matched(column_of_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.flatnonzero(column_of_row >= 0)
    return rows, column_of_row[rows]


def ours() -> list[Form]:
    """detr_fast's own two forms; rows are targets in both."""
    return [
        Form("list", linear_sum_assignment, _as_given),
        Form("batch", linear_sum_assignment, _as_given, batch=True, each=_transpose),
    ]


def inputs(form: Form, matrices: list[np.ndarray]) -> Matrices | None:
    """The matrices as ``form`` wants them, contiguous; None if it cannot take them."""
    if form.transposed:
        matrices = [np.ascontiguousarray(matrix.T) for matrix in matrices]
    given = matrices
    if form.batch:
        if len({matrix.shape for matrix in matrices}) > 1:
            return None
        given = np.stack(matrices)
        return torch.from_numpy(given) if form.tensors else given
    return [torch.from_numpy(matrix) for matrix in given] if form.tensors else given


def worst_total(
    form: Form, answer: object, matrices: list[np.ndarray], expected: np.ndarray
) -> float:
    """The greatest relative difference of a total from the expected one, added in float64."""
    worst = 0.0
    for result, matrix, total in zip(form.each(answer), matrices, expected, strict=True):
        cost = (matrix.T if form.transposed else matrix).astype(np.float64)
        rows, cols = form.pairs(result, cost)
        if len(set(rows)) != min(cost.shape) or len(set(cols)) != min(cost.shape):
            return np.inf
        worst = max(worst, abs(cost[rows, cols].sum() - total) / max(1, abs(total)))
    return worst


EXACT = 1e-11  # relative; the rounding of a sum of a few hundred float64


def fastest(
    forms: list[Form],
    matrices: list[np.ndarray],
    expected: np.ndarray,
    too_slow: float,
    threads: int,
    wrong: dict[Form, float],
) -> tuple[Form | None, str]:
    """The form that solves ``matrices`` in the least time, of those whose totals are ``expected``.

    They are tried on some of the problems; those far behind on a single one, not even on these.
    ``wrong`` holds the forms known to be inexact, with how far they are off; it is added to.

    Returns:
        The form, or None with the reason: all are inexact or would take more than ``too_slow``
        seconds.
    """
    middle = matrices[np.argsort([matrix.size for matrix in matrices])[len(matrices) // 2]]
    one = {form: _seconds(form, [middle], 2)[0] for form in forms if form not in wrong}
    # As many as take some 50 ms; more for threads, which pay off only if there is enough to do.
    most = (24 if threads == 1 else 384, int(0.05 * threads / min(one.values(), default=1)))
    some = np.linspace(0, len(matrices) - 1, min(len(matrices), max(4 * threads, min(most))))
    sample, totals = [matrices[int(i)] for i in some], expected[some.astype(int)]
    times, estimates = {}, []
    for form in sorted(one, key=one.__getitem__):
        if inputs(form, sample) is None:
            continue
        if one[form] * len(matrices) > too_slow * threads:
            estimates.append(one[form] * len(matrices))
            continue
        if times and one[form] > 5 * min(one[other] for other in times):
            break
        seconds, answer = _seconds(form, sample, 5 if one[form] * len(sample) < 0.02 else 1)
        off = worst_total(form, answer, sample, totals)
        if off > EXACT:
            wrong[form] = off
        else:
            times[form] = seconds
    if times:
        return min(times, key=times.__getitem__), ""
    if estimates:
        return None, f"a call would take about {min(estimates):.1f} s"
    return None, describe(wrong)


def describe(wrong: dict[Form, float]) -> str:
    worst: dict[str, float] = {}
    for form, off in wrong.items():
        name = form.name.split(",")[0]
        worst[name] = max(off, worst.get(name, 0))
    return "; ".join(f"{name} not exact (off by {off:.0e})" for name, off in worst.items())


def _seconds(form: Form, matrices: list[np.ndarray], calls: int) -> tuple[float, object]:
    """The shortest of some calls, and their answer."""
    given = inputs(form, matrices)
    best = np.inf
    for _ in range(calls):
        start = time.perf_counter()
        answer = form.solve(given)
        best = min(best, time.perf_counter() - start)
    return best, answer
