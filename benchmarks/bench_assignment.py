"""detr_fast.linear_sum_assignment against the assignment solvers of other projects, on the CPU.

python -m benchmarks.bench_assignment --out benchmarks/results/assignment_cpu.csv

The costs are DETR's, rows are targets. The row ``floor`` solves nothing: NumPy reads every cost
once, with SIMD, for the least of each matrix. Sets: ``headline`` (96 problems of 300 and of 900
queries), and how the time grows with ``queries``, ``targets`` and the number of ``problems``.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from benchmarks.cases import FAMILIES, cost_matrices
from benchmarks.harness import environment_info, left_out, measure, write_csv
from benchmarks.rivals import (
    EXACT,
    FOLDER,
    Rivals,
    describe,
    fastest,
    inputs,
    load,
    ours,
    worst_total,
)

OURS = "detr_fast"
FLOOR = "floor: one reading of the costs"
GROWTH_FAMILIES = ("initial", "trained")  # the hardest and the easiest


@dataclass(frozen=True)
class Problems:
    """``problems`` problems of ``queries`` x 1..``targets``, or x exactly ``targets``."""

    set: str
    family: str
    problems: int
    queries: int
    targets: int
    exact: bool = False
    dtype: str = "float32"
    threads: int = 1

    @property
    def name(self) -> str:
        targets = f"{self.targets}" if self.exact else f"1..{self.targets}"
        size = f"{self.problems} {self.family} of {self.queries} x {targets}"
        return f"{self.set}: {size}, {self.dtype}, threads: {self.threads}"


def problem_sets() -> Iterator[Problems]:
    for family in FAMILIES:
        for queries in (300, 900):
            for dtype in ("float32", "float64"):
                yield Problems("headline", family, 96, queries, 100, dtype=dtype)
    for family in GROWTH_FAMILIES:  # 12: two images, six layers
        for queries in (100, 300, 900, 1800, 3900):
            yield Problems("queries", family, 12, queries, 50)
        for targets in (1, 5, 10, 20, 50, 100, 200, 300, 400):
            yield Problems("targets", family, 12, 300, targets, exact=True)
        for threads in (1, 2):
            for count in (1, 6, 12, 48, 96, 384, 1536, 4096):
                yield Problems("problems", family, count, 300, 50, threads=threads)


def quick_sets() -> Iterator[Problems]:
    """One small case of each kind."""
    for family in FAMILIES:
        yield Problems("headline", family, 3, 20, 6)
    for family in GROWTH_FAMILIES:
        for queries in (10, 20):
            yield Problems("queries", family, 3, queries, 5)
        for targets in (5, 20, 25):
            yield Problems("targets", family, 3, 20, targets, exact=True, dtype="float64")
        for count in (1, 4):
            yield Problems("problems", family, count, 20, 5)
            yield Problems("problems", family, count, 20, 5, threads=2)


def run(
    problems: Problems, rivals: Rivals, seed: int, seconds: float, too_slow: float
) -> dict[str, dict[str, object]]:
    """The figures of every solver, by name."""
    matrices = [
        matrix.astype(problems.dtype)
        for matrix in cost_matrices(
            problems.family,
            problems.problems,
            problems.queries,
            problems.targets,
            problems.exact,
            seed,
        )
    ]
    expected = np.array(
        [m[linear_sum_assignment(m)].sum() for m in (m.astype(np.float64) for m in matrices)]
    )
    solvers = {OURS: ours(), **rivals.forms}
    wrong: dict[str, dict] = {name: {} for name in solvers}
    while True:
        chosen, calls, why = {}, {}, {}
        for name, forms in solvers.items():
            form, why[name] = fastest(
                forms, matrices, expected, too_slow, problems.threads, wrong[name]
            )
            if form is not None:
                given = inputs(form, matrices)
                chosen[name] = form
                calls[name] = lambda form=form, given=given: form.solve(given)
        if OURS not in chosen:
            raise AssertionError(f"{problems.name}: {OURS}: {why[OURS]}")
        if problems.threads == 1:
            calls[FLOOR] = lambda: [matrix.min() for matrix in matrices]

        def check(answers: Mapping[str, object], chosen=chosen) -> None:
            for name, answer in answers.items():
                if name == FLOOR:
                    continue
                off = worst_total(chosen[name], answer, matrices, expected)
                if off > EXACT:
                    wrong[name][chosen[name]] = off
                    raise _Inexact

        try:
            measured = measure(calls, check, seconds, warm_up=0.03, too_slow=too_slow)
        except _Inexact:  # a form that was exact on the problems it was tried on
            continue
        result = {
            name: {
                "form": chosen[name].described if name in chosen else "",
                **(measured[name] if name in chosen else left_out(why[name])),
                "excluded": describe(wrong[name]),
            }
            for name in solvers
        }
        if FLOOR in measured:
            result[FLOOR] = {"form": "numpy.min, loop", **measured[FLOOR], "excluded": ""}
        return result


class _Inexact(Exception):
    """A total is not the optimum; the next quickest form is tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that all runs")
    parser.add_argument("--seconds", type=float, default=0.5, help="per case (default: 0.5)")
    parser.add_argument("--too-slow", type=float, default=5.0, help="leave out a solver whose call "
                        "takes more seconds (default: 5)")  # fmt: skip
    parser.add_argument("--sets", nargs="+", help="of headline, queries, targets, problems")
    parser.add_argument("--threads", type=int, help="run only the cases with so many threads")
    parser.add_argument("--rivals", type=Path, default=FOLDER, help="folder with rivals' packages")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rows = []
    said = False
    for problems in quick_sets() if args.quick else problem_sets():
        if args.threads not in (None, problems.threads):
            continue
        if args.sets and problems.set not in args.sets:
            continue
        torch.set_num_threads(problems.threads)
        rivals = load(problems.threads, args.rivals)
        for package in () if said else rivals.missing:
            print(f"{package} is not installed: left out")
        said = True
        seconds = min(args.seconds, 0.02) if args.quick else args.seconds
        start = time.perf_counter()
        result = run(problems, rivals, args.seed, seconds, args.too_slow)
        about = environment_info(args.seed, rivals.versions)
        print(f"{problems.name} ({time.perf_counter() - start:.1f} s)", flush=True)
        for name, figures in result.items():
            times_faster = ""
            if figures["p50_us"] and result["SciPy"]["p50_us"]:
                times_faster = round(result["SciPy"]["p50_us"] / figures["p50_us"], 3)
            print(
                f"  {name:24} {figures['p50_us'] or '-':>12} us {times_faster:>8}x  "
                f"{figures['form']}  {figures['note']} {figures['excluded']}"
            )
            rows.append(
                {
                    **vars(problems),
                    "variant": name,
                    **figures,
                    "speedup_to_scipy": times_faster,
                    **about,
                }
            )
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
