"""An ablation's table, its meaning in words, and its curves, all made from the rows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from detr_fast.training.ablation import BASELINE, VARIANTS, mean_and_spread
from detr_fast.training.config import TrainConfig
from detr_fast.visualize.figures import PALETTE, new_figure, open_axes, to_image

Rows = Sequence[dict[str, Any]]

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def ablation_report(rows: Rows, config: TrainConfig, command: str = "detr-fast ablate") -> str:
    """Return a Markdown page: what was trained, the table with its spread, a sentence per variant.

    Args:
        rows: as ``Ablation`` writes them.
        config: the baseline.
        command: the one that made the rows, or the last of several.
    """
    by_variant = _by_variant(rows)
    if BASELINE not in by_variant:
        raise ValueError("the results have no baseline yet")
    seeds = sorted({row["seed"] for row in rows})
    steps = {row["steps"] for row in rows}
    size = "x".join(map(str, config.image_size)) + " pixels, " if config.image_size else ""
    lines = [
        "# What each part is good for",
        "",
        f"```bash\n{command}\n```",
        "",
        f"Baseline: {config.model} on {config.data}, {size}{config.num_queries} queries, "
        f"{config.epochs} epochs ({' or '.join(map(str, sorted(steps)))} steps of "
        f"{config.batch_size} images). Every variant changes what its name says and nothing else, "
        f"and has the same budget, data and seeds ({', '.join(map(str, seeds))}).",
        "",
        "Mean and standard deviation over the seeds. The difference to the baseline is taken seed "
        "by seed, with its 95 % interval by Student's t. Duplicates: detections above 0.5 that "
        "overlap a surer one of the same class by an IoU above 0.5. AP with NMS: after "
        "removing such boxes at any score.",
        "",
        "| variant | seeds | AP | AP50 | difference in AP | AP with NMS | duplicates per image |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in by_variant.items():
        difference = _difference(runs, by_variant[BASELINE])
        lines.append(
            f"| {name} | {len(runs)} | {_spread(runs, 'AP')} | {_spread(runs, 'AP50')} | "
            f"{'' if name == BASELINE else _interval(difference)} | {_spread(runs, 'AP_nms')} | "
            f"{_spread(runs, 'duplicates', 2)} |"
        )
    lines += ["", "![AP over the epochs](curves.png)", "", "## Reading", ""]
    lines += [f"- {line}" for line in readings(rows)]
    return "\n".join(lines) + "\n"


def readings(rows: Rows) -> list[str]:
    """Return one sentence per variant, which claims no more than its numbers support."""
    by_variant = _by_variant(rows)
    base = by_variant[BASELINE]
    sentences = []
    for name, runs in by_variant.items():
        if name == BASELINE:
            continue
        difference = _difference(runs, base)
        mean, half = difference
        if len(_paired(runs, base)) < 2:
            verdict = f"AP {mean:+.3f} in the only seed shared: no repeats, no conclusion"
        elif half < abs(mean):
            verdict = (
                f"{'better' if mean > 0 else 'worse'} than the baseline, AP {_interval(difference)}"
            )
        else:
            verdict = (
                f"AP {_interval(difference)}: not told apart from the baseline by these repeats"
            )
        more = []
        extra, extra_half = _difference(runs, base, "duplicates")
        if extra_half < abs(extra) and abs(extra) >= 0.01 and len(_paired(runs, base)) > 1:
            more.append(
                f"{'more' if extra > 0 else 'fewer'} duplicates, "
                f"{mean_and_spread(_values(runs, 'duplicates'))[0]:.2f} per image instead of "
                f"{mean_and_spread(_values(base, 'duplicates'))[0]:.2f}"
            )
        gained = (
            mean_and_spread(_values(runs, "AP_nms"))[0] - mean_and_spread(_values(runs, "AP"))[0]
        )
        if abs(gained) >= 0.005:
            more.append(f"NMS {'adds' if gained > 0 else 'costs'} {abs(gained):.3f} AP")
        sentences.append(f"**{name}**: {'; '.join([verdict, *more])}.")
    return sentences


def plot_ablation(rows: Rows) -> Image.Image:
    """Plot AP over the epochs: a panel per group, the baseline in each, bands worst to best."""
    by_variant = _by_variant(rows)
    groups: dict[str, list[str]] = {}
    for name, runs in by_variant.items():
        if name != BASELINE:
            groups.setdefault(runs[0]["group"], []).append(name)
    groups = groups or {"baseline": []}
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = new_figure(4.4 * columns, 3.4 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (group, names) in zip(grid.flat, groups.items(), strict=False):
        axes.set_axis_on()
        open_axes(axes)
        for index, name in enumerate([BASELINE, *names]):
            if name not in by_variant:
                continue
            colour = "black" if name == BASELINE else PALETTE[(index - 1) % len(PALETTE)]
            epochs, curves = _curves(by_variant[name])
            axes.plot(epochs, curves.mean(0), color=colour, label=name, marker=".")
            axes.fill_between(epochs, curves.min(0), curves.max(0), color=colour, alpha=0.15, lw=0)
        axes.set_title(group, fontsize=10)
        axes.set(xlabel="epoch", ylabel="validation AP")
        axes.tick_params(labelleft=True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0, None)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return to_image(figure)


def _by_variant(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each variant, in the order of ``VARIANTS``, sorted by seed."""
    order = {variant.name: place for place, variant in enumerate(VARIANTS)}
    names = sorted({row["variant"] for row in rows}, key=lambda name: order.get(name, len(order)))
    return {
        name: sorted((r for r in rows if r["variant"] == name), key=lambda r: r["seed"])
        for name in names
    }


def _values(rows: Rows, key: str) -> list[float]:
    return [row[key] for row in rows]


def _paired(runs: Rows, base: Rows, key: str = "AP") -> list[float]:
    """Return the differences from the baseline with the same seed."""
    known = {row["seed"]: row[key] for row in base}
    return [row[key] - known[row["seed"]] for row in runs if row["seed"] in known]


def _difference(runs: Rows, base: Rows, key: str = "AP") -> tuple[float, float]:
    """Return the mean difference and half its 95 % interval; infinite with a single pair."""
    values = _paired(runs, base, key)
    if not values:
        return math.nan, math.inf
    mean, spread = mean_and_spread(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, _T95[min(len(values) - 1, len(_T95)) - 1] * spread / math.sqrt(len(values))


def _spread(rows: Rows, key: str, digits: int = 3) -> str:
    mean, spread = mean_and_spread(_values(rows, key))
    return f"{mean:.{digits}f}" if len(rows) < 2 else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _interval(difference: tuple[float, float]) -> str:
    mean, half = difference
    return f"{mean:+.3f}" if math.isinf(half) else f"{mean:+.3f} ± {half:.3f}"


def _curves(rows: Rows) -> tuple[np.ndarray, np.ndarray]:  # [E], [seeds, E]
    epochs = [point["epoch"] for point in rows[0]["curve"]]
    return np.array(epochs), np.array([[point["AP"] for point in row["curve"]] for row in rows])
