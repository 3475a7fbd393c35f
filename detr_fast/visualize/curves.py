"""The curves of a training run, from the rows of its metrics file, on one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detr_fast.visualize.figures import PALETTE, new_figure, open_axes, plain, to_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, Any]]

LOSSES = (
    ("loss_ce", "class loss (cross-entropy)"),
    ("loss_bbox", "box loss (L1)"),
    ("loss_giou", "box loss (1 - GIoU)"),
)
SIZES = (("AP_small", "small"), ("AP_medium", "medium"), ("AP_large", "large"))


def plot_training(rows: Sequence[dict[str, Any]], title: str = "") -> Image.Image:
    """Plot losses per decoder layer, AP, matching and optimizer of a run over its epochs.

    Args:
        rows: of ``metrics.jsonl``, of kinds ``"train"`` and ``"val"``. Values that are missing,
            because the model has one decoder layer or an older version wrote them, are left out.
    """
    train = [row for row in rows if row["kind"] == "train"]
    val = [row for row in rows if row["kind"] == "val"]
    panels: list[Callable[[Axes], None]] = [
        *(
            lambda axes, name=name, label=label: _loss(axes, train, val, name, label)
            for name, label in LOSSES
        ),
        lambda axes: _accuracy(axes, val),
        lambda axes: _classes(axes, val),
        lambda axes: _sizes(axes, val),
    ]
    if any("no_object_matched" in row for row in train):
        panels.append(lambda axes: _no_object(axes, train))
    if _rematched(train) or any("rematched_epoch" in row for row in val):
        panels.append(lambda axes: _instability(axes, train, val))
    panels.append(lambda axes: _optimizer(axes, train))
    columns = 3
    lines = -(-len(panels) // columns)
    figure = new_figure(12.5, 3.2 * lines + (0.3 if title else 0))
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, draw in zip(grid.flat, panels, strict=False):
        open_axes(axes)
        draw(axes)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    if title:
        figure.suptitle(plain(title, 100))
    return to_image(figure)


def _loss(axes: Axes, train: Rows, val: Rows, name: str, label: str) -> None:
    aux = sorted(
        (key for key in (train[0] if train else {}) if key.startswith(name + "_")),
        key=lambda key: int(key.rsplit("_", 1)[1]),
    )
    names = [*aux, name]
    for index, key in enumerate(names):
        x, y = _series(train, key)
        last = key == name
        colour = PALETTE[0] if last else _shade(index, len(aux))
        marker = _marker(y)
        if last:
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        text = f"layer {index}" + (" (last)" if last and aux else "")
        axes.plot(
            *_smooth(x, y), color=colour, label=text, marker=marker, linewidth=1.2 + 0.6 * last
        )
    _line(axes, val, name, f"layer {len(aux)}, validation", "black", "--")
    _log_scale(axes)
    _title(axes, label)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, fontsize=8)


def _accuracy(axes: Axes, val: Rows) -> None:
    for index, name in enumerate(("AP", "AP50", "AP75")):
        _line(axes, val, name, name, PALETTE[index])
    axes.set_ylim(0, 1)
    known = val and val[-1]["AP"] >= 0  # -1: there are no objects
    last = f"last: AP {val[-1]['AP']:.3f}, AP50 {val[-1]['AP50']:.3f}" if known else ""
    _title(axes, f"validation; {last}" if last else "validation")
    _legend(axes)


def _classes(axes: Axes, val: Rows) -> None:
    last = val[-1].get("per_class", {}) if val else {}
    names = [name for name in last if last[name] >= 0]  # -1: there are no such objects
    if len(names) > 10:  # show the five best and the five worst
        order = sorted(names, key=lambda name: -last[name])
        names = [*order[:5], *order[-5:]]
    for index, name in enumerate(names):
        rows = [
            {"epoch": row["epoch"], name: row["per_class"][name]}
            for row in val
            if row.get("per_class", {}).get(name, -1) >= 0
        ]
        _line(axes, rows, name, plain(name, 24), PALETTE[index % len(PALETTE)])
    axes.set_ylim(0, 1)
    _title(axes, "AP by class")
    _legend(axes)


def _sizes(axes: Axes, val: Rows) -> None:
    for index, (name, label) in enumerate(SIZES):
        rows = [row for row in val if row.get(name, -1) >= 0]  # -1: there are no such objects
        _line(axes, rows, name, label, PALETTE[index])
    axes.set_ylim(0, 1)
    _title(axes, "AP by size (COCO: 32 and 96 pixels)")
    _legend(axes)


def _no_object(axes: Axes, train: Rows) -> None:
    for index, (name, label) in enumerate(
        (("no_object_matched", "matched queries"), ("no_object_unmatched", "unmatched queries"))
    ):
        _line(axes, train, name, label, PALETTE[index])
    axes.set_ylim(0, 1)
    _title(axes, 'probability of "no object"')
    _legend(axes)


def _instability(axes: Axes, train: Rows, val: Rows) -> None:
    keys = _rematched(train)
    for index, key in enumerate(keys):
        label = f"from layer {index} to {index + 1}"
        x, y = _series(train, key)
        axes.plot(*_smooth(x, y), color=_shade(index, len(keys)), label=label, marker=_marker(y))
    _line(axes, val, "rematched_epoch", "since the last evaluation", PALETTE[1])
    axes.set_ylim(0, None)
    _title(axes, "share of targets whose query changes")
    _legend(axes)


def _rematched(train: Rows) -> list[str]:
    """Return the names of the shares of rematched targets, layer by layer."""
    names = {key for row in train for key in row if key.startswith("rematched_")}
    return sorted(names, key=_layer)


def _layer(name: str) -> int:
    return int(name.rsplit("_", 1)[1])


def _optimizer(axes: Axes, train: Rows) -> None:
    x, y = _series(train, "grad_norm")
    gradient = "gradient norm (blue), " if len(y) else ""
    if gradient:
        axes.plot(x, y, color=PALETTE[0], alpha=0.25, linewidth=0.8)
        axes.plot(*_smooth(x, y), color=PALETTE[0], marker=_marker(y))
        _log_scale(axes)
        axes.tick_params(axis="y", which="both", labelcolor=PALETTE[0])
    else:
        axes.set_yticks([])
    other = axes.twinx()
    x, y = _series(train, "lr")
    other.plot(x, y, color=PALETTE[1], marker=_marker(y))
    other.set_ylim(0, None)
    other.locator_params(axis="y", nbins=5)  # few, short labels: there is little room
    # The power of ten is in the title: matplotlib would write it over the title's end.
    exponent = int(f"{y.max():e}".split("e")[1]) if y.any() else 0
    other.yaxis.set_major_formatter(lambda rate, _: f"{rate / 10.0**exponent:g}")
    other.tick_params(axis="y", labelcolor=PALETTE[1])
    other.spines["top"].set_visible(False)
    unit = f" / 1e{exponent}" if exponent else ""
    _title(axes, f"{gradient}learning rate{unit} (red)")


def _line(axes: Axes, rows: Rows, name: str, label: str, colour: str, linestyle: str = "-") -> None:
    x, y = _series(rows, name)
    if len(y):
        marker = "." if len(y) <= 40 else None
        axes.plot(x, y, linestyle, color=colour, label=label, marker=marker)


def _marker(y: np.ndarray) -> str | None:
    """Return a marker for very short curves: the line of a single point is invisible."""
    return "." if len(y) <= 3 else None


def _series(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    return tuple(np.array(pairs, dtype=float).reshape(-1, 2).T)


def _shade(index: int, count: int) -> tuple[float, ...]:
    """Return a colour of one hue, paler for earlier layers."""
    import matplotlib

    return matplotlib.colormaps["Oranges"](0.35 + 0.5 * index / max(1, count - 1))


def _log_scale(axes: Axes) -> None:
    """Use a logarithmic y axis with plain numbers: 0.6, not 6 x 10^-1."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _smooth(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a running mean over a fortieth of the curve."""
    if not len(y):
        return x, y
    window = max(1, len(y) // 40)
    kernel = np.ones(window) / window
    return np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")
