"""Draws the committed rows of the matching benchmark.

python -m benchmarks.plot benchmarks/results/matcher_cpu.csv benchmarks/results/matcher_cpu.png
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

VARIANTS = {  # name in the rows -> colour
    "published matcher": "#9aa0a6",
    "block-wise torch + SciPy": "#e3a04f",
    "FastMatcher": "#1f77b4",
}
LABELS = {"FastMatcher": "FastMatcher, times faster than published"}


def plot_matching(rows: list[dict[str, str]], path: Path) -> None:
    """One panel per family of predictions: time of each variant, by size of the problem."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    figure = Figure(figsize=(4.6 * len(families), 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for axes, family in zip(panels, families, strict=True):
        chosen = [row for row in rows if row["family"] == family]
        sizes = list(dict.fromkeys(_size(row) for row in chosen))
        for k, (variant, colour) in enumerate(VARIANTS.items()):
            mine = {_size(row): row for row in chosen if row["variant"] == variant}
            times = np.array([float(mine[size]["p50_us"]) / 1000 for size in sizes])
            at = np.arange(len(sizes)) + (k - 1) * 0.27
            axes.bar(at, times, width=0.26, color=colour, label=LABELS.get(variant, variant))
            if variant == "FastMatcher":
                for x, time, size in zip(at, times, sizes, strict=True):
                    ratio = float(mine[size]["speedup_to_published"])
                    axes.text(x - 0.12, time * 1.1, f"{ratio:.0f}x", va="bottom", fontsize=8)
        axes.set_title({"initial": "untrained", "random": "random", "trained": "trained"}[family])
        axes.set_xticks(range(len(sizes)), sizes, fontsize=8)
        axes.set_xlabel("images x queries x targets (up to)")
        axes.set_yscale("log")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"ms per training step, {rows[0]['layers']} decoder layers")
    panels[0].legend(frameon=False, loc="upper left", fontsize=9)
    figure.suptitle(f"Matching on the CPU, by kind of predictions ({rows[0]['cpu']})", fontsize=11)
    figure.savefig(path)


def _size(row: dict[str, str]) -> str:
    return f"{row['images']}x{row['queries']}x{row['targets']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="CSV of benchmarks.bench_matcher")
    parser.add_argument("picture", type=Path, help="PNG to write")
    args = parser.parse_args()
    with args.rows.open() as file:
        plot_matching(list(csv.DictReader(file)), args.picture)


if __name__ == "__main__":
    main()
