"""Draws the rows of a GPU: python -m benchmarks.gpu_plot gpu.csv gpu.png."""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.plot import Row, read


def draw(table: list[Row], path: Path) -> None:
    """A panel for each kind of problem, a bar for each variant."""
    kinds = list(dict.fromkeys(row["what"] for row in table))
    figure = Figure(figsize=(11, 4.8 * len(kinds)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds, strict=True):
        chosen = [row for row in table if row["what"] == kind]
        cases = list(dict.fromkeys(_case(row) for row in chosen))
        variants = list(dict.fromkeys(row["variant"] for row in chosen))
        for k, variant in enumerate(variants):
            mine = {_case(row): float(row["gpu_us"]) for row in chosen if row["variant"] == variant}
            at = [
                c + (k - (len(variants) - 1) / 2) * 0.8 / len(variants) for c in range(len(cases))
            ]
            axes.bar(
                at,
                [mine.get(case, float("nan")) for case in cases],
                width=0.8 / len(variants),
                label=variant,
            )
        axes.set_yscale("log")
        axes.set_xticks(range(len(cases)), cases, fontsize=7)
        axes.set_ylabel("microseconds on the GPU's clock")
        axes.set_title(f"{kind}, {table[0]['gpu']}")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path)


def _case(row: dict[str, str]) -> str:
    return f"{row['family']}\n{row['problems']} x\n{row['queries']} x {row['targets']}"


if __name__ == "__main__":
    rows, picture = map(Path, sys.argv[1:])
    draw(read(rows), picture)
    print(f"wrote {picture}")
