"""Predictions and targets for the tests of matching, and a comparison of matches."""

import torch

K = 5  # classes

# The standing cases: B, N, targets per image.
CASES = {
    "usual": (3, 100, [7, 20, 12]),
    "one image empty": (3, 30, [4, 0, 6]),
    "first and last empty": (4, 30, [0, 5, 2, 0]),
    "all empty": (2, 30, [0, 0]),
    "more targets than queries": (2, 6, [9, 20]),
    "as many targets as queries": (2, 8, [8, 8]),
    "one query": (2, 1, [3, 1]),
    "one target": (1, 100, [1]),
    "no query": (2, 0, [3, 0]),
    "no image": (0, 10, []),
    "many targets": (1, 300, [100]),
    "mixed": (3, 10, [3, 15, 0]),
}


def predictions(b, n, k=K, seed=0, dtype=torch.float32, scale=1.0):
    """One layer's, with logits [b, n, k + 1]."""
    g = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": (scale * torch.randn(b, n, k + 1, generator=g)).to(dtype),
        "pred_boxes": (torch.rand(b, n, 4, generator=g) * 0.9 + 0.05).to(dtype),
    }


def targets_of(sizes, k=K, seed=0):
    g = torch.Generator().manual_seed(1000 + seed)
    return [
        {
            "labels": torch.randint(0, k, (m,), generator=g),
            "boxes": torch.rand(m, 4, generator=g) * 0.9 + 0.05,
        }
        for m in sizes
    ]


def assert_same(ours, twins) -> None:
    assert len(ours) == len(twins)
    for (i, j), (twin_i, twin_j) in zip(ours, twins, strict=True):
        for index in (i, j):
            assert index.dtype == torch.int64 and index.device.type == "cpu"
        assert i.tolist() == twin_i.tolist()
        assert j.tolist() == twin_j.tolist()
