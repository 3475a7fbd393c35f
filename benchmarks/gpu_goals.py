"""What the project wants to reach on a GPU of the H200's class, and what the rows say of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.gpu_names import (
    ASSIGNMENT,
    BOX_LOSSES,
    COMPILED,
    EAGER,
    GRAPHED,
    LOSSES,
    MATCHING,
    NEW_SIZES,
    OURS,
    PACKED,
    PUBLISHED_LOSSES,
    RAGGED,
    SOLVER,
    TORCH_ASSIGNMENT,
    TRANSFORMERS,
)

Row = Mapping[str, str]
Size = tuple[str, str, str]  # problems, queries, targets
STEPS = (EAGER, COMPILED, GRAPHED)
STEP_CASE = {
    "model": "resnet50",
    "height": "800",
    "width": "1066",
    "batch": "8",
    "precision": "bf16 autocast",
}
CASES = {ASSIGNMENT: 12, RAGGED: 3, NEW_SIZES: 1, LOSSES: 3}  # of a whole run
FAMILIES = 3
MET, MISSED, INCOMPLETE, NO_ROWS = "met", "missed", "incomplete", "no rows"


class Goal(NamedTuple):
    """A goal, and how it stands; it is not met before all of its rows are there."""

    text: str
    measured: str
    state: str


def goals(kernels: Sequence[Row], steps: Sequence[Row]) -> list[Goal]:
    """All goals.

    Args:
        kernels: rows of ``bench_gpu``.
        steps: rows of ``bench_train_step``; those of another case than ``STEP_CASE`` do not count.
    """
    small, large = ("96", "100", "20"), ("96", "300", "100")
    untrained = [row for row in kernels if row["family"] == "initial"]
    steps = [row for row in steps if all(row[key] == value for key, value in STEP_CASE.items())]
    ours = [row for row in steps if row["variant"] in STEPS]
    not_waiting = [
        row
        for row in kernels
        if row["variant"].startswith(OURS) and not row["variant"].endswith(", checked")
    ]
    step = "training step, ResNet-50, 8 images of 800 x 1066, bf16"
    return [
        _ratio(f"{ASSIGNMENT}, one shape: 5 x torch-linear-assignment", kernels, ASSIGNMENT, 5),
        _ratio(f"{RAGGED}: 5 x torch-linear-assignment", kernels, RAGGED, 5),
        _ratio(f"{NEW_SIZES}: 5 x torch-linear-assignment", kernels, NEW_SIZES, 5),
        _time("matching 6 x 16, 100 x 20: 60 us of the GPU", kernels, small, "gpu_us", 60),
        _time("matching 6 x 16, 100 x 20: 150 us of the host", kernels, small, "host_us", 150),
        _time(
            "matching 6 x 16, 300 x 100, untrained: 250 us of the GPU",
            untrained,
            large,
            "gpu_us",
            250,
            families=1,
        ),
        _ratio(f"{LOSSES}: 5 x the published criterion", kernels, LOSSES, 5),
        _no_waits(
            "matching, assignment and boxes: the host waits for nothing", not_waiting, "waits"
        ),
        _speed(f"{step}: 2 x the published formula", ours, _speedup, 2),
        _speed(f"{step}: 1.3 x transformers", ours, _over_transformers(steps), 1.3),
        _no_waits(f"{step}: the host waits for nothing", ours, "host_waits"),
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
        return Goal(text, "", INCOMPLETE if cases else NO_ROWS)
    worst, case = min(ratios)
    name = f"{case[0]}, {case[1]} x ({case[2]} x {case[3]})"
    measured = f"{worst:.2f} x at least, in {len(ratios)} of {CASES[what]} cases: {name}"
    return Goal(text, measured, _state(worst >= least, len(ratios) >= CASES[what]))


def _time(
    text: str, rows: Iterable[Row], size: Size, column: str, most: float, families: int = FAMILIES
) -> Goal:
    """The largest time over the families of predictions."""
    times = [
        (float(row[column]), row["family"])
        for row in rows
        if (row["what"], row["variant"]) == (MATCHING, PACKED)
        and (row["problems"], row["queries"], row["targets"]) == size
    ]
    if not times:
        return Goal(text, "", NO_ROWS)
    worst, family = max(times)
    measured = f"{worst:.1f} us at most, in {len(times)} of {families} families: {family}"
    return Goal(text, measured, _state(worst <= most, len(times) >= families))


def _no_waits(text: str, rows: Sequence[Row], column: str) -> Goal:
    counts = [(int(row[column]), row["variant"]) for row in rows if row[column] != ""]
    if not counts:
        return Goal(text, "", INCOMPLETE if rows else NO_ROWS)
    worst, variant = max(counts)
    measured = f"{worst} at most, in {len(counts)} of {len(rows)} rows"
    measured += f": {variant}" if worst else ""
    return Goal(text, measured, _state(worst == 0, len(counts) == len(rows)))


def _speed(
    text: str, rows: Sequence[Row], ratio: Callable[[Row], float | None], least: float
) -> Goal:
    """The best of our ways to run the same step."""
    ratios = [(value, row["variant"]) for row in rows if (value := ratio(row)) is not None]
    if not ratios:
        return Goal(text, "", INCOMPLETE if rows else NO_ROWS)
    best, variant = max(ratios)
    return Goal(text, f"{best:.2f} x: {variant}", _state(best >= least, True))


def _state(reached: bool, complete: bool) -> str:
    """One row that is too slow is enough to miss a goal."""
    if not reached:
        return MISSED
    return MET if complete else INCOMPLETE


def _speedup(row: Row) -> float | None:
    return float(row["speedup_to_published"]) if row["speedup_to_published"] else None


def _over_transformers(rows: Iterable[Row]) -> Callable[[Row], float | None]:
    """By way of the published formula, which every run times: only one of them has transformers."""
    theirs = [_speedup(row) for row in rows if row["variant"] == TRANSFORMERS]

    def ratio(row: Row) -> float | None:
        mine = _speedup(row)
        return mine / theirs[0] if mine and theirs and theirs[0] else None

    return ratio
