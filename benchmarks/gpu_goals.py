"""What the project wants to reach on a GPU of the H200's class, and what the rows say of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.gpu_names import (
    ASSIGNMENT,
    BOX_LOSSES,
    COMPILED,
    EAGER,
    GRAPHED,
    LISTS,
    LOSSES,
    MATCHING,
    NEW_SIZES,
    PACKED,
    PUBLISHED_LOSSES,
    RAGGED,
    SOLVER,
    TORCH_ASSIGNMENT,
    TRANSFORMERS,
)

Row = Mapping[str, str]
Size = tuple[str, str, str]  # problems, queries, targets
OURS = (EAGER, COMPILED, GRAPHED)


class Goal(NamedTuple):
    """A goal, and how it stands."""

    text: str
    measured: str  # empty: there are no rows for it
    met: bool


def goals(kernels: Sequence[Row], steps: Sequence[Row]) -> list[Goal]:
    """All goals.

    Args:
        kernels: rows of ``bench_gpu``.
        steps: rows of ``bench_train_step`` on a GPU.
    """
    small, large = ("96", "100", "20"), ("96", "300", "100")
    ours = [row for row in steps if row["variant"] in OURS]
    waiting = [row for row in kernels if row["variant"] in (PACKED, LISTS, SOLVER, BOX_LOSSES)]
    return [
        _ratio("assignment at fixed sizes: 5 x torch-linear-assignment", kernels, ASSIGNMENT, 5),
        _ratio("assignment, M differs: more than 5 x", kernels, RAGGED, 5),
        _ratio("assignment, a new largest M: more than 5 x", kernels, NEW_SIZES, 5),
        _most("matching 6 x 16, 100 x 20: 60 us of the GPU", kernels, PACKED, small, "gpu_us", 60),
        _most(
            "matching 6 x 16, 100 x 20: 150 us of the host", kernels, PACKED, small, "host_us", 150
        ),
        _most(
            "matching 6 x 16, 300 x 100, untrained: 250 us of the GPU",
            [row for row in kernels if row["family"] == "initial"],
            PACKED,
            large,
            "gpu_us",
            250,
        ),
        _ratio("box losses, forward and backward: 5 x the published ones", kernels, LOSSES, 5),
        _no_waits("matching, assignment and losses wait for nothing", waiting, "waits"),
        _steps("training step: 2 x the published formula", ours, _speedup, 2),
        _steps("training step: 1.3 x transformers", ours, _over_transformers(steps), 1.3),
        _no_waits("training step: the host waits for nothing", ours, "host_waits"),
    ]


def _ratio(text: str, rows: Iterable[Row], what: str, least: float) -> Goal:
    """The smallest ratio over all cases of the best rival's time to ours."""
    cases: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        if row["what"] == what:
            case = tuple(row[key] for key in ("family", "problems", "queries", "targets"))
            cases.setdefault(case, {})[row["variant"]] = float(row["gpu_us"])
    ratios = []
    for case, times in cases.items():
        rivals = [
            time
            for name, time in times.items()
            if name.startswith((TORCH_ASSIGNMENT, PUBLISHED_LOSSES))
        ]
        mine = [times[name] for name in (SOLVER, BOX_LOSSES) if name in times]
        if rivals and mine:
            ratios.append((min(rivals) / mine[0], case))
    if not ratios:
        return Goal(text, "", False)
    worst, case = min(ratios)
    name = f"{case[0]}, {case[1]} x ({case[2]} x {case[3]})"
    return Goal(text, f"{worst:.1f} x at least, of {len(ratios)}: {name}", worst >= least)


def _most(
    text: str, rows: Iterable[Row], variant: str, size: Size, column: str, most: float
) -> Goal:
    """The largest time over the families of predictions."""
    times = [
        (float(row[column]), row["family"])
        for row in rows
        if (row["what"], row["variant"]) == (MATCHING, variant)
        and (row["problems"], row["queries"], row["targets"]) == size
    ]
    if not times:
        return Goal(text, "", False)
    worst, family = max(times)
    return Goal(text, f"{worst:.0f} us at most, of {len(times)}: {family}", worst <= most)


def _no_waits(text: str, rows: Iterable[Row], column: str) -> Goal:
    counted = [(int(row[column]), row["variant"]) for row in rows if row[column] != ""]
    if not counted:
        return Goal(text, "", False)
    worst, variant = max(counted)
    what = f"{worst} at most, of {len(counted)}" + (f": {variant}" if worst else "")
    return Goal(text, what, worst == 0)


def _steps(
    text: str, rows: Iterable[Row], ratio: Callable[[Row], float | None], least: float
) -> Goal:
    """The best of our ways to run the same step."""
    found = [(value, row["variant"]) for row in rows if (value := ratio(row)) is not None]
    if not found:
        return Goal(text, "", False)
    best, variant = max(found)
    return Goal(text, f"{best:.2f} x: {variant}", best >= least)


def _speedup(row: Row) -> float | None:
    return float(row["speedup_to_published"]) if row["speedup_to_published"] else None


def _over_transformers(rows: Iterable[Row]) -> Callable[[Row], float | None]:
    """By way of the published formula, which every run times: only one of them has transformers."""
    theirs = {row["precision"]: _speedup(row) for row in rows if row["variant"] == TRANSFORMERS}

    def ratio(row: Row) -> float | None:
        mine, other = _speedup(row), theirs.get(row["precision"])
        return mine / other if mine and other else None

    return ratio
