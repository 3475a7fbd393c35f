"""The page of a run's curves: every panel has its curve, and rows of older runs still draw."""

import io

import numpy as np
import pytest

from detr_fast.visualize import PALETTE, plot_training
from detr_fast.visualize import curves as module


def rows(layers: int = 3, matching: bool = True, classes: int = 3) -> list[dict]:
    train = []
    for step in range(1, 100):
        row = {
            "kind": "train",
            "step": step,
            "epoch": step / 10,
            "grad_norm": 10 / step,
            "lr": 1e-4,
        }
        for name in ("loss_ce", "loss_bbox", "loss_giou"):
            row[name] = 1 / step
            row |= {f"{name}_{i}": (2 - 0.1 * i) / step for i in range(layers - 1)}
        if matching:
            row |= {f"rematched_{i}": 0.5 / (i + 1) for i in range(layers - 1)}
            row |= {"no_object_matched": 0.5, "no_object_unmatched": 0.9}
        train.append(row)
    val = [
        {"kind": "val", "epoch": e, "AP": 0.1 * e, "AP50": 0.1, "AP75": 0.0}
        | {"AP_small": 0.05 * e, "AP_medium": 0.1 * e, "AP_large": -1.0}
        | {"per_class": {f"class {k}": 0.1 * e / (k + 1) for k in range(classes)}}
        | ({"rematched_epoch": 0.5 / e} if e > 1 and matching else {})
        for e in range(1, 10)
    ]
    return [*train, *val]


def drawn(monkeypatch, *args) -> tuple[list, object]:
    """The axes of the figure, and the picture."""
    figures = []
    new_figure = module.new_figure
    monkeypatch.setattr(
        module, "new_figure", lambda *a, **k: figures.append(new_figure(*a, **k)) or figures[0]
    )
    picture = plot_training(*args)
    return figures[0].axes, picture


def curve(axes, label: str) -> np.ndarray:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line.get_xydata()


def test_every_panel(monkeypatch):
    data = rows()
    axes, picture = drawn(monkeypatch, data, "a run")
    assert picture.width > 1200
    panels = {ax.get_title(): ax for ax in axes}
    losses = panels["class loss (cross-entropy)"]
    assert losses.get_legend_handles_labels()[1] == ["layer 0", "layer 1", "layer 2 (last)"]
    smoothed = curve(losses, "layer 0")
    assert smoothed[0] == pytest.approx([0.15, 1.5])  # of steps 1 and 2: a fortieth of 99
    accuracy = panels["validation; last: AP 0.900, AP50 0.100"]
    assert curve(accuracy, "AP").tolist() == pytest.approx(
        np.array([[e, 0.1 * e] for e in range(1, 10)])
    )
    assert len(panels["AP by class"].lines) == 3
    sizes = panels["AP by size (COCO: 32 and 96 pixels)"]
    assert sizes.get_legend_handles_labels()[1] == ["small", "medium"]  # no large object
    assert len(panels['probability of "no object"'].lines) == 2
    instability = panels["share of targets whose query changes"]
    assert instability.get_legend_handles_labels()[1] == [
        *("from layer 0 to 1", "from layer 1 to 2", "since the last evaluation")
    ]
    assert curve(instability, "since the last evaluation")[0].tolist() == [2, 0.25]
    assert panels["gradient norm (blue), learning rate / 1e-4 (red)"].lines


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_losses_of_validation_images(monkeypatch, layers, known):
    """Beside those of training, from the first row that has them on."""
    data = rows(layers)
    for row in data:
        if row["kind"] == "val" and row["epoch"] > 2 and known:
            row |= {"loss_ce": 0.2, "loss_bbox": 0.3 * row["epoch"], "loss_giou": 0.4}
    axes, _ = drawn(monkeypatch, data)
    (panel,) = [ax for ax in axes if ax.get_title() == "box loss (L1)"]
    labels = ["layer 0"] if layers == 1 else ["layer 0", "layer 1", "layer 2 (last)"]
    last = f"layer {layers - 1}, validation"
    labels += [last] * known
    assert panel.get_legend_handles_labels()[1] == labels
    assert (panel.get_legend() is not None) == (len(labels) > 1)
    if known:
        expected = np.array([[e, 0.3 * e] for e in range(3, 10)])
        assert curve(panel, last) == pytest.approx(expected)


def test_rows_of_an_older_version(monkeypatch):
    axes, _ = drawn(monkeypatch, rows(layers=1, matching=False))
    titles = {ax.get_title() for ax in axes}
    assert 'probability of "no object"' not in titles
    assert "share of targets whose query changes" not in titles


def test_short_and_many(monkeypatch):
    data = rows()
    plot_training(data[:1])
    plot_training([])
    axes, _ = drawn(monkeypatch, rows(classes=80))
    (classes,) = [ax for ax in axes if ax.get_title() == "AP by class"]
    labels = classes.get_legend_handles_labels()[1]
    assert labels[0] == "class 0" and labels[-1] == "class 79" and len(labels) == 10


def test_colours_are_there():
    pixels = np.array(plot_training(rows())).astype(int)
    for colour in PALETTE[:3]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - wanted).sum(-1) < 30).any()


def test_names_from_outside(monkeypatch):
    """A class may be called anything: formulas are not set, and nothing is left out."""
    drawn = []
    monkeypatch.setattr(module, "to_image", lambda figure: drawn.append(figure))
    names = [r"$\foo$", "a$b$c", "_hidden", "n" * 200, *(f"absent {k}" for k in range(8))]
    found = rows()
    for row in found:
        if row["kind"] == "val":
            row["per_class"] = {n: -1.0 if n.startswith("absent") else 0.5 for n in names}
    plot_training(found, r"run $\foo$")
    (figure,) = drawn
    figure.savefig(io.BytesIO())
    (axes,) = [axes for axes in figure.axes if axes.get_title() == "AP by class"]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == 4 and max(map(len, labels)) < 30


def test_ticks_can_be_read_and_lie_inside_the_picture(monkeypatch):
    few = [row | {"lr": 4e-4} for row in rows() if row["epoch"] <= 2]
    axes, picture = drawn(monkeypatch, few, "a run")
    panels = {ax.get_title(): ax for ax in axes}

    def texts(axis, which: str) -> list[str]:
        labels = axis.get_ticklabels(which=which)
        return [label.get_text() for label in labels if label.get_text()]

    losses = panels["class loss (cross-entropy)"].yaxis
    found = [*texts(losses, "major"), *texts(losses, "minor")]
    assert {"0.1", "1"} <= set(found)
    assert all(text == f"{float(text):g}" for text in found)  # no powers of ten to work out
    epochs = texts(panels["validation; last: AP 0.200, AP50 0.100"].xaxis, "major")
    assert {"1", "2"} <= set(epochs) and all(text.isdecimal() for text in epochs)
    (rate,) = [ax for ax in axes if ax.yaxis.get_ticks_position() == "right"]
    labels = rate.yaxis.get_ticklabels()
    assert all(label.get_window_extent().x1 <= picture.width for label in labels)


@pytest.mark.parametrize(
    ("rate", "unit", "top"), [(4e-4, " / 1e-4", "4"), (1e-5, " / 1e-5", "1"), (0.0, "", "")]
)
def test_the_power_of_ten_is_in_the_title(monkeypatch, rate, unit, top):
    """And not above the axis, where the title is."""
    axes, _ = drawn(monkeypatch, [row | {"lr": rate} for row in rows()])
    (panel,) = [ax for ax in axes if ax.yaxis.get_ticks_position() == "right"]
    assert panel.yaxis.get_offset_text().get_text() == ""
    titles = [ax.get_title() for ax in axes]
    assert f"gradient norm (blue), learning rate{unit} (red)" in titles
    labels = [label.get_text() for label in panel.yaxis.get_ticklabels()]
    assert not top or {"0", top} <= set(labels)


def test_rates_without_gradient_norms_are_a_line(monkeypatch):
    """The norm's rows decide how the norm is drawn, and nothing else."""
    data = [{k: v for k, v in row.items() if k != "grad_norm"} for row in rows()]
    axes, _ = drawn(monkeypatch, data)
    (rate,) = [ax for ax in axes if ax.yaxis.get_ticks_position() == "right"]
    assert rate.lines[0].get_marker() == "None"
    titles = [ax.get_title() for ax in axes]
    assert any(title.startswith("learning rate") for title in titles)
    assert not any("gradient norm" in title for title in titles)
