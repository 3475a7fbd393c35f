"""The page of a GPU's report: what ran, what failed, and the tables of the rows that there are.

Its last line has what became of the steps once more, as a comment with JSON, so that a later call
of the report can go on with them.
"""

import csv
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_goals import goals

Row = dict[str, str]
MOST_FAILURES = 60  # lines


class Result(NamedTuple):
    """What became of a step."""

    group: str
    about: str  # the machine and the commit
    said: str
    failed: list[str]  # a line of each thing that failed within it


def page(results: Mapping[str, Result], folder: Path) -> str:
    """Markdown.

    Args:
        results: of each step, by title.
        folder: where gpu.csv and train_step*.csv may be; from what is there come the tables.
    """
    text = ["# What ran on a GPU"]
    for about, of_one in itertools.groupby(results.items(), lambda item: item[1].about):
        ran = dict(of_one)
        text += ["", f"## {about}", "", "| step | result |", "|---|---|"]
        text += [f"| {title} | {_cell(result.said)} |" for title, result in ran.items()]
        if failed := [line for result in ran.values() for line in result.failed]:
            left = len(failed) - MOST_FAILURES
            more = [f"and {left} more: log.txt"] if left > 0 else []
            text += ["", "### What failed", "", "```", *failed[:MOST_FAILURES], *more, "```"]
    of_steps = sorted(folder.glob("train_step*.csv"))
    try:
        step_rows = [row for path in of_steps for row in _rows(path)]
        text += ["", *goals_table(_rows(folder / "gpu.csv"), step_rows)]
    except Exception as error:
        text += ["", f"The goals cannot be looked up in these rows: {error!r}"]
    tables = [(folder / "gpu.csv", kernels), *((path, training_steps) for path in of_steps)]
    for path, table in tables:
        if path.is_file():
            try:
                text += ["", *table(_read(path))]
            except Exception as error:  # the other tables, and the steps to come, are worth having
                text += ["", f"{path.name} has no such rows as are expected: {error!r}"]
    # Within JSON only strings have a >, which would end the comment after two hyphens.
    kept = json.dumps(results).replace(">", r"\u003e")
    return "\n".join([*text, "", f"<!-- results {kept} -->"]) + "\n"


def results_of(text: str) -> dict[str, Result]:
    """The results that a page was made of.

    Raises:
        ValueError: it has none that can be read.
    """
    found = re.search(r"^<!-- results (.*) -->$", text, re.MULTILINE)
    if not found:
        raise ValueError("no line of results")
    return {title: Result(*values) for title, values in json.loads(found[1]).items()}


def goals_table(of_kernels: list[Row], of_steps: list[Row]) -> list[str]:
    """What is to be reached, beside what was."""
    lines = ["## Goals", "", "| goal | measured | |", "|---|---|---|"]
    for goal in goals(of_kernels, of_steps):
        lines.append(_line(*goal))
    return lines


def kernels(rows: list[Row]) -> list[str]:
    """The table of gpu.csv, which ``benchmarks.bench_gpu`` writes."""
    first = rows[0]
    lines = [
        "## Kernels",
        "",
        f"{first['gpu']}, CUDA {first['cuda']}, torch {first['torch']}, commit {first['commit']}, "
        f"torch-linear-assignment {first['torch_linear_assignment'] or 'not installed'}; "
        f"`{first['command']}`. A copy moves {first['copy_gb_per_s']} GB/s. "
        "Medians, cache cold, variants in turn; GPU time excludes launching in those calls that "
        "were queued before the GPU began, host time is that of the call on an idle GPU. The floor "
        "is the time to move what has to be moved. "
        "Steps are the longest chain of dependent ones among the first problems "
        "(benchmarks/chain.py); what is beyond the floor, divided by them, is the time of one. "
        "Kernels are timed apart, by the profiler and with the cache warm.",
        "",
        "| what | family | problems | N | M | variant | GPU us | queued | host us | waits "
        "| floor us | steps | ns per step | us of each kernel |",
        "|" + "---|" * 14,
    ]
    for row in rows:
        floor = float(row["bytes"]) / (float(row["copy_gb_per_s"]) * 1e3)
        names = ("what", "family", "problems", "queries", "targets", "variant", "gpu_us")
        cells = [*(row[name] for name in names), f"{row['queued']} of {row['calls']}"]
        cells += [row["host_us"], row["waits"], f"{floor:.1f}", row["steps"]]
        lines.append(_line(*cells, _per_step(row, floor), row["kernels"]))
    return lines


def _per_step(row: Row, floor: float) -> str:
    """Only of what is ours: rivals do other steps."""
    steps = int(row["steps"] or 0)
    ours = row["variant"].startswith(("FastMatcher", "linear_sum"))
    return f"{(float(row['gpu_us']) - floor) * 1e3 / steps:.0f}" if steps and ours else "-"


def training_steps(rows: list[Row]) -> list[str]:
    """The table of a file that ``benchmarks.bench_train_step`` writes."""
    first = rows[0]
    columns = ("images_per_second", "speedup_to_published", "step_ms", "host_waits")
    columns += ("peak_mb_per_image",)
    return [
        "## Training steps",
        "",
        f"{first['model']}, {first['batch']} images of {first['height']} x {first['width']}, "
        f"{first['precision']}, commit {first['commit']}; `{first['command']}`.",
        "",
        _line("variant", *columns),
        "|" + "---|" * (1 + len(columns)),
        *(_line(row["variant"], *(row[name] for name in columns)) for row in rows),
    ]


def _rows(path: Path) -> list[Row]:
    return _read(path) if path.is_file() else []


def _read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "/")
