"""The cost parts shown are what the matcher minimises, and the assignment is its optimum."""

import itertools

import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

from detr_fast import FastMatcher
from detr_fast.visualize import explain_matching, plot_matching
from detr_fast.visualize import matching as module


def case(n: int = 9, m: int = 4, seed: int = 0, spread: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(3):
        boxes = torch.rand(2, n, 4, generator=generator) * 0.4 * spread + 0.3
        logits = torch.randn(2, n, 4, generator=generator) * spread
        layers.append({"pred_logits": logits, "pred_boxes": boxes})
    target = {
        "labels": torch.randint(0, 3, (m,), generator=generator),
        "boxes": torch.rand(m, 4, generator=generator) * 0.4 + 0.3,
    }
    return layers, target


@pytest.mark.parametrize(
    "options",
    [{}, {"cost_class": 2, "cost_giou": 0}, {"class_cost": "focal"}, {"giou_guard": "eps"}],
)
@pytest.mark.parametrize("shape", [(9, 4), (3, 7)])
def test_parts_and_assignment(options, shape):
    layers, target = case(*shape)
    matcher = FastMatcher(**options)
    found = explain_matching(matcher, layers[0], target, image=1)
    assert found.cost.shape == shape
    queries, targets = linear_sum_assignment(found.cost.numpy())
    expected = torch.full((shape[1],), -1)
    expected[torch.as_tensor(targets)] = torch.as_tensor(queries)
    assert torch.equal(found.query_index, expected)
    assert torch.equal(found.greedy_index, found.cost.argmin(0))
    if not options:
        box, wanted = layers[0]["pred_boxes"][1, 2], target["boxes"][1]
        assert float(found.l1_cost[2, 1]) == pytest.approx(5 * float((box - wanted).abs().sum()))
        p = layers[0]["pred_logits"][1, 2].softmax(-1)[target["labels"][1]]
        assert float(found.class_cost[2, 1]) == pytest.approx(-float(p))
    if options.get("cost_giou") == 0:
        assert not found.giou_cost.any()


def test_greedy_takes_queries_twice():
    """Nearly equal targets want one query; the assignment gives each its own."""
    layers, target = case()
    target = {"labels": torch.tensor([1, 1, 1]), "boxes": target["boxes"][:1].expand(3, 4)}
    found = explain_matching(FastMatcher(), layers[0], target)
    assert found.duplicates == 2 and len(found.query_index.unique()) == 3


@pytest.mark.parametrize(("n", "m"), [(9, 4), (100, 12), (3, 7), (1, 1)])
def test_picture(n, m):
    layers, target = case(n, m)
    picture = Image.new("RGB", (90, 40), "white")
    drawn = plot_matching(picture, layers, target, ["a", "b", "c"], image=1)
    assert drawn.width > 1000


def drawn(monkeypatch, *args, **options):
    """The figure, and its panels: targets, costs' parts, queries of each layer."""
    figures = []
    monkeypatch.setattr(module, "to_image", figures.append)
    layers, target, *matcher = args
    picture = Image.new("RGB", (90, 60), "white")
    plot_matching(picture, layers, target, ["a", "b", "c"], *matcher, **options)
    (figure,) = figures
    figure.canvas.draw()
    starts = ("targets", "cost above a perfect", "matched query")
    panels = [ax for start in starts for ax in figure.axes if ax.get_title().startswith(start)]
    return figure, *panels


def overlaps(extents) -> list:
    return [pair for pair in itertools.combinations(extents, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0])
def test_captions_of_targets_can_be_read(monkeypatch, spread):
    """Each target's numbers are there, inside the picture, and none hides another."""
    layers, target = case(30, 16)
    target["boxes"][:, :2] = 0.5 + spread * (target["boxes"][:, :2] - 0.5)
    _, pairs, _, _ = drawn(monkeypatch, layers, target)
    texts = list(pairs.texts)
    found = explain_matching(FastMatcher(), layers[-1], target).query_index
    assert [t.get_text() for t in texts] == [f"{t}→{q}" for t, q in enumerate(found.tolist())]
    extents = [text.get_bbox_patch().get_window_extent() for text in texts]
    assert not overlaps(extents)
    frame = pairs.get_window_extent().padded(1)
    assert all(frame.containsx(e.x0) and frame.containsx(e.x1) for e in extents)
    assert all(frame.containsy(e.y0) and frame.containsy(e.y1) for e in extents)


def test_a_caption_away_from_its_target_has_a_line(monkeypatch):
    layers, target = case(30, 16)
    _, pairs, _, _ = drawn(monkeypatch, layers, target)
    assert not pairs.lines
    target["boxes"] = target["boxes"][:1].expand(16, 4) * torch.tensor([1, 1, 0.2, 0.2])
    _, pairs, _, _ = drawn(monkeypatch, layers, target)
    # The picture is shown 480 pixels wide.
    corner = (target["boxes"][0, :2] - target["boxes"][0, 2:] / 2) * torch.tensor([480, 320])
    assert pairs.lines
    for line in pairs.lines:
        assert line.get_xydata()[0].tolist() == pytest.approx(corner.tolist(), rel=1e-4)


@pytest.mark.parametrize(("n", "m"), [(100, 18), (3, 7), (100, 40)])
def test_labels_of_bars_can_be_read(monkeypatch, n, m):
    layers, target = case(n, m)
    _, _, bars, _ = drawn(monkeypatch, layers, target)
    found = explain_matching(FastMatcher(), layers[-1], target)
    pairs = zip(found.query_index.tolist(), found.greedy_index.tolist(), strict=True)
    expected = [
        ("no query" if query < 0 else f"query {query}")
        + ("" if query == greedy else f", arg-min {greedy}")
        for query, greedy in pairs
    ]
    assert [text.get_text() for text in bars.texts] == expected
    extents = [text.get_window_extent() for text in bars.texts]
    patches = [patch.get_window_extent() for patch in bars.patches if patch.get_width()]
    assert not overlaps(extents)
    assert not any(text.overlaps(bar) for text in extents for bar in patches)
    assert max(extent.x1 for extent in extents) <= bars.get_window_extent().x1


def test_negative_costs_go_to_the_left(monkeypatch):
    """Parts of both signs, as of a focal class cost, do not lie over each other."""
    layers, target = case(9, 4)
    layers = [layer | {"pred_logits": 6 + layer["pred_logits"]} for layer in layers]
    _, _, bars, _ = drawn(monkeypatch, layers, target, FastMatcher(class_cost="focal"))
    spans = [
        (round(bar.get_y(), 3), sorted((bar.get_x(), bar.get_x() + bar.get_width())))
        for bar in bars.patches
    ]
    assert min(low for _, (low, _) in spans) < -1
    for (row, (low, high)), (other, (start, end)) in itertools.combinations(spans, 2):
        assert row != other or high <= start + 1e-6 or end <= low + 1e-6


@pytest.mark.parametrize(("layer", "name"), [(-1, "2"), (0, "0"), (1, "1"), (-3, "0")])
def test_layers_are_numbered_as_the_option_does(monkeypatch, layer, name):
    layers, target = case()
    figure, _, _, by_layer = drawn(monkeypatch, layers, target, layer=layer)
    assert figure.get_suptitle() == f"decoder layer {name} of 0..2"
    labels = [label.get_text() for label in by_layer.get_xticklabels()]
    assert labels == ["layer 0", "layer 1", "layer 2"]


def test_faults():
    layers, target = case()
    picture = Image.new("RGB", (90, 40))
    empty = {"labels": target["labels"][:0], "boxes": target["boxes"][:0]}
    with pytest.raises(ValueError, match="no target"):
        plot_matching(picture, layers, empty, ["a", "b", "c"])
    with pytest.raises(ValueError, match="decoder layer 3"):
        plot_matching(picture, layers, target, ["a", "b", "c"], layer=3)
