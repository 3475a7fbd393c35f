"""The cost parts shown are what the matcher minimises, and the assignment is its optimum."""

import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

from detr_fast import FastMatcher
from detr_fast.visualize import explain_matching, plot_matching


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


def test_faults():
    layers, target = case()
    picture = Image.new("RGB", (90, 40))
    empty = {"labels": target["labels"][:0], "boxes": target["boxes"][:0]}
    with pytest.raises(ValueError, match="no target"):
        plot_matching(picture, layers, empty, ["a", "b", "c"])
    with pytest.raises(ValueError, match="decoder layer 3"):
        plot_matching(picture, layers, target, ["a", "b", "c"], layer=3)
