"""Draws the committed rows.

python -m benchmarks.plot benchmarks/results

Reads ``assignment_cpu.csv`` and ``matcher_cpu.csv`` in the folder and writes the pictures there.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

Row = dict[str, str]

# Colours of Okabe and Ito, which the colour-blind can tell apart, and a marker each.
STYLES = {  # name in the rows -> colour, marker
    "detr_fast": ("#0072b2", "o"),
    "SciPy": ("#000000", "s"),
    "lap": ("#e69f00", "^"),
    "lapx": ("#009e73", "D"),
    "torch-linear-assignment": ("#cc79a7", "v"),
    "FastMatcher": ("#0072b2", "o"),
    "published matcher": ("#8a8f94", "s"),
    "block-wise torch + SciPy": ("#d55e00", "^"),
    "floor: exp of all logits": ("#56b4e9", ""),
}
SOLVERS = ("lap", "torch-linear-assignment", "SciPy", "lapx", "detr_fast")
MATCHERS = ("published matcher", "block-wise torch + SciPy", "FastMatcher")
FLOOR = "floor: exp of all logits"
READING = "floor: one reading of the costs"
FAMILIES = {"initial": "untrained", "random": "random", "trained": "trained"}


def plot_sizes(rows: list[Row], path: Path) -> None:
    """Matching in common sizes: one panel per family of predictions, a bar per matcher."""
    threads = max(int(row["threads"]) for row in rows if row["set"] == "sizes")
    rows = [row for row in rows if row["set"] == "sizes" and int(row["threads"]) == threads]
    families = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    figure, panels = _figure(1, len(families), 4.6, 4.3, sharey=True)
    for axes, family in zip(panels[0], families, strict=True):
        chosen = [row for row in rows if row["family"] == family]
        sizes = list(dict.fromkeys(_size(row) for row in chosen))
        for k, variant in enumerate(MATCHERS):
            mine = {_size(row): row for row in chosen if row["variant"] == variant}
            at = np.arange(len(sizes)) + (k - 1) * 0.27
            times = [_ms(mine[size]) for size in sizes]
            axes.bar(at, times, width=0.26, color=STYLES[variant][0], label=variant)
            if variant == "FastMatcher":
                for x, size, time in zip(at, sizes, times, strict=True):
                    ratio = mine[size]["speedup_to_published"]
                    if ratio:
                        text = f"{float(ratio):.0f}x"
                        # From the bar's left edge: centred, it would lie on the bar beside it.
                        axes.text(x - 0.12, time * 1.08, text, va="bottom", fontsize=8)
        axes.set_title(FAMILIES[family])
        axes.set_xticks(range(len(sizes)), sizes, fontsize=8)
        axes.set_xlabel("images x queries x targets (up to)")
        axes.set_yscale("log")
        _tidy(axes)
    panels[0][0].set_ylabel(f"ms per training step, {rows[0]['layers']} decoder layers")
    _legend(figure, panels[0][0], "FastMatcher, times as fast as published")
    _title(figure, "Matching on the CPU, by kind of predictions", rows[0], threads)
    figure.savefig(path)


def plot_headline(rows: list[Row], path: Path) -> None:
    """The bare solver against SciPy: bars by family, a panel per number of queries."""
    rows = [row for row in rows if row["set"] == "headline" and row["dtype"] == "float32"]
    sizes = list(dict.fromkeys(row["queries"] for row in rows))
    others = [variant for variant in SOLVERS if variant != "SciPy"]
    figure, panels = _figure(1, len(sizes), 5.2, 4.4, sharey=True)
    for axes, size in zip(panels[0], sizes, strict=True):
        chosen = [row for row in rows if row["queries"] == size]
        families = [family for family in FAMILIES if any(r["family"] == family for r in chosen)]
        for k, variant in enumerate(others):
            mine = {row["family"]: row for row in chosen if row["variant"] == variant}
            for at, family in enumerate(families):
                row = mine.get(family)
                if row is None or not row["speedup_to_scipy"]:
                    continue
                ratio, x = float(row["speedup_to_scipy"]), at + (k - 1.5) * 0.21
                axes.bar(
                    x,
                    ratio - 1,
                    bottom=1,
                    width=0.2,
                    color=STYLES[variant][0],
                    label=variant if at == 0 else None,
                )
                up = ratio >= 1
                axes.annotate(
                    f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}",
                    (x, ratio),
                    (0, 2 if up else -2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if up else "top",
                    fontsize=8,
                )
        axes.axhline(1, color="black", linewidth=0.8, zorder=3)
        axes.set_xticks(range(len(families)), [FAMILIES[family] for family in families])
        axes.set_title(
            f"{chosen[0]['problems']} problems of {size} queries x 1..{chosen[0]['targets']}"
        )
        axes.set_xlabel("predictions")
        axes.set_yscale("log")
        axes.margins(y=0.1)
        _tidy(axes, "x")
    panels[0][0].set_ylabel("times as fast as SciPy (the line at 1x)")
    _legend(figure, panels[0][0])
    _title(figure, "Bare assignment, float32 costs", rows[0], 1)
    figure.savefig(path)


def plot_assignment_growth(rows: list[Row], path: Path) -> None:
    """The bare solver's time against queries, targets and problems: a row per family."""
    _plot_growth(
        rows,
        path,
        (
            ("queries", "queries N ({problems} problems, M up to {targets})"),
            ("targets", "targets M ({problems} problems, N = {queries})"),
            ("problems", "problems (N = {queries}, M up to {targets})"),
        ),
        SOLVERS,
        "Bare assignment: how the time grows",
    )


def plot_matcher_growth(rows: list[Row], path: Path) -> None:
    """The matcher's time against queries, targets and decoder layers: a row per family."""
    _plot_growth(
        rows,
        path,
        (
            ("queries", "queries N (B = {images}, L = {layers}, M up to {targets})"),
            ("targets", "targets M (B = {images}, L = {layers}, N = {queries})"),
            ("layers", "decoder layers L (B = {images}, N = {queries}, M up to {targets})"),
        ),
        (*MATCHERS, FLOOR),
        "Matching: how the time grows",
    )


def _plot_growth(
    rows: list[Row],
    path: Path,
    columns: Sequence[tuple[str, str]],  # what grows, which is also the set's name; the axis' label
    variants: Sequence[str],
    title: str,
) -> None:
    rows = [row for row in rows if row["threads"] == "1"]
    grown = [row for row in rows if row["set"] == columns[0][0]]
    families = [family for family in FAMILIES if any(row["family"] == family for row in grown)]
    figure, panels = _figure(len(families), len(columns), 4.4, 3.5, sharey="row")
    for across, family in zip(panels, families, strict=True):
        for axes, (name, label) in zip(across, columns, strict=True):
            chosen = [row for row in rows if row["set"] == name and row["family"] == family]
            for variant in variants:
                mine = [row for row in chosen if row["variant"] == variant and row["p50_us"]]
                points = sorted((int(row[name]), _ms(row)) for row in mine)
                colour, marker = STYLES[variant]
                ours = variant in ("detr_fast", "FastMatcher")
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    marker=marker,
                    markersize=5,
                    linewidth=2.4 if ours else 1.4,
                    linestyle="--" if variant == FLOOR else "-",
                    zorder=4 if ours else 3,
                    label=variant,
                )
            xs = sorted({int(row[name]) for row in chosen})
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(_spread(xs), [str(x) for x in _spread(xs)], fontsize=8)
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="x", which="minor", length=0)
            axes.set_xlabel(label.format(**chosen[0]), fontsize=9)
            _tidy(axes)
        across[0].set_ylabel(f"{FAMILIES[family]} predictions\nms per call")
    _legend(figure, panels[0][0])
    _title(figure, title, rows[0], 1)
    figure.savefig(path)


def _figure(down: int, across: int, width: float, height: float, sharey: bool | str):
    figure = Figure(figsize=(width * across, height * down + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(down, across, sharey=sharey, squeeze=False)


def _legend(figure: Figure, axes: Axes, note: str = "") -> None:
    handles, labels = axes.get_legend_handles_labels()
    labels = [note if note.startswith(label) else label for label in labels]
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9
    )


def _title(figure: Figure, text: str, row: Row, threads: int) -> None:
    much = "one thread" if threads == 1 else f"{threads} threads"
    figure.suptitle(f"{text} ({much}, {row['cpu']})", fontsize=11)


def _tidy(axes: Axes, unit: str = "") -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _spread(values: list[int]) -> list[int]:
    """Those of ascending values that are far enough apart to be labelled on a log axis."""
    kept = values[-1:]
    for value in values[-2::-1]:
        if np.log(kept[0] / value) > 0.06 * np.log(values[-1] / values[0]):
            kept.insert(0, value)
    return kept


def _ms(row: Row) -> float:
    return float(row["p50_us"]) / 1000 if row["p50_us"] else float("nan")


def _size(row: Row) -> str:
    return f"{row['images']}x{row['queries']}x{row['targets']}"


PICTURES = {  # name -> rows, how it is drawn
    "matcher_cpu.png": ("matcher_cpu.csv", plot_sizes),
    "matcher_growth_cpu.png": ("matcher_cpu.csv", plot_matcher_growth),
    "assignment_cpu.png": ("assignment_cpu.csv", plot_headline),
    "assignment_growth_cpu.png": ("assignment_cpu.csv", plot_assignment_growth),
}


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder with the rows")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: the same)")
    args = parser.parse_args()
    out = args.out or args.results
    out.mkdir(parents=True, exist_ok=True)
    for picture, (rows, draw) in PICTURES.items():
        draw(read(args.results / rows), out / picture)
        print(f"wrote {out / picture}")


if __name__ == "__main__":
    main()
