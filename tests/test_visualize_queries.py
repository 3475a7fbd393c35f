"""Query specialisation: whose boxes are where, and how often a query is used."""

import numpy as np
import pytest
import torch

from detr_fast.visualize import (
    QueryPredictions,
    collect_predictions,
    effective_queries,
    plot_query_boxes,
    plot_query_use,
)
from detr_fast.visualize.queries import KINDS, box_kinds


class Fixed(torch.nn.Module):
    """A model whose query q predicts box q with class 0, and nothing in images of zeros."""

    def __init__(self, boxes: torch.Tensor) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, images, mask=None):
        b, n = len(images), len(self.boxes)
        logits = torch.zeros(b, n, 3)
        logits[..., 0] = 10 * images[:, 0, 0, 0, None]
        logits[..., 2] = 5
        return {"pred_logits": logits, "pred_boxes": self.boxes.expand(b, -1, -1)}


BOXES = torch.tensor([[0.2, 0.3, 0.1, 0.1], [0.6, 0.5, 0.6, 0.3], [0.5, 0.5, 0.3, 0.6]])


def predictions() -> QueryPredictions:
    ones, zeros = torch.ones(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    targets = [
        {"labels": torch.tensor([0]), "boxes": BOXES[1:2]},
        {"labels": torch.tensor([0, 0]), "boxes": BOXES[1:]},
    ]
    none = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    return collect_predictions(Fixed(BOXES), [(ones, None, targets), (zeros, None, [none])])


def test_collecting():
    found = predictions()
    assert found.boxes.shape == (3, 3, 4) and torch.equal(found.boxes[2], BOXES)
    assert (found.scores[:2] > 0.9).all() and (found.scores[2] < 0.1).all()
    expected = [[False, True, False], [False, True, True], [False] * 3]
    assert found.matched.tolist() == expected
    detects, matched = found.use(0.5)
    assert detects.tolist() == pytest.approx([2 / 3] * 3)
    assert matched.tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    with pytest.raises(ValueError, match="no image"):
        collect_predictions(Fixed(BOXES), [])


def test_kinds():
    assert box_kinds(BOXES).tolist() == [0, 1, 2]


def test_effective_queries():
    assert effective_queries(torch.ones(8)) == pytest.approx(8)
    assert effective_queries(torch.tensor([0, 0.3, 0])) == pytest.approx(1)
    assert effective_queries(torch.zeros(4)) == 0


def test_pictures():
    """Each query's square has a dot of its kind's colour, and the quadrant it is in."""
    pixels = np.array(plot_query_boxes(predictions())).astype(int)
    third = pixels.shape[1] // 3
    for query, (_, colour) in enumerate(KINDS):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        square = pixels[: pixels.shape[0] - 60, query * third : (query + 1) * third]
        # Overlapping half-transparent dots approach the colour.
        rows, columns = (abs(square - wanted).sum(-1) < 90).nonzero()
        assert len(rows), query
        if query == 0:  # at (0.2, 0.3): upper left
            assert columns.mean() < third / 2 and rows.mean() < pixels.shape[0] / 2
    assert min(plot_query_use(predictions()).size) > 300
    many = QueryPredictions(torch.rand(40, 100, 4), torch.rand(40, 100), torch.rand(40, 100) < 0.1)
    assert plot_query_boxes(many, most=100, threshold=0.5).height > 1000
    plot_query_use(many)
