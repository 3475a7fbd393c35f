"""Batches for the drop-in matchers, and what their originals compute: torch and SciPy, float32."""

import inspect

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert

K = 9  # classes

# Queries, and the targets of each image.
SHAPES = [
    (20, [5, 3]),
    (20, [0, 7, 0, 20]),
    (20, [0, 0]),
    (12, [30, 4]),
    (1, [1, 0, 2]),
    (100, [31, 0, 58, 99]),
]


def batch(n, sizes, classes=K, seed=0, dtype=torch.float32, contiguous=True, scale=2.0):
    """Predictions ``pred_logits`` [B, N, classes] and ``pred_boxes``, and B targets."""
    g = torch.Generator().manual_seed(seed)
    b = len(sizes)
    logits = scale * torch.randn(b, classes, n, generator=g).transpose(1, 2) - 1
    boxes = (0.9 * torch.rand(4, b, n, generator=g) + 0.05).permute(1, 2, 0)
    assert n == 1 or not (logits.is_contiguous() or boxes.is_contiguous())
    if contiguous:
        logits, boxes = logits.contiguous(), boxes.contiguous()
    outputs = {"pred_logits": logits.to(dtype), "pred_boxes": boxes.to(dtype), "other": None}
    targets = [
        {
            "labels": torch.randint(0, K, (m,), generator=g),
            "boxes": 0.9 * torch.rand(m, 4, generator=g) + 0.05,
            "image_id": torch.tensor(i),
        }
        for i, m in enumerate(sizes)
    ]
    return outputs, targets


def batches(**options):
    """All shapes, five seeds each, and the ways in which the same predictions can lie in memory."""
    for n, sizes in SHAPES:
        for seed in range(5):
            yield batch(n, sizes, seed=seed, **options)
            yield batch(n, sizes, seed=seed, contiguous=False, **options)


def shrunk(outputs, targets, scale):
    """The same with boxes so small that a guard of GIoU's divisors matters."""
    targets = [{**target, "boxes": scale * target["boxes"]} for target in targets]
    return {**outputs, "pred_boxes": scale * outputs["pred_boxes"]}, targets


def in_float(outputs):
    return {key: None if value is None else value.float() for key, value in outputs.items()}


def focal(logits, alpha=0.25, gamma=2.0, eps=1e-8):
    p = logits.sigmoid()
    positive = alpha * (1 - p) ** gamma * -(p + eps).log()
    negative = (1 - alpha) * p**gamma * -(1 - p + eps).log()
    return positive - negative


def giou(a, b, eps=0.0):
    """Of cxcywh boxes [N, 4] and [M, 4]; eps is added to both divisors."""
    a, b = (box_convert(box, "cxcywh", "xyxy") for box in (a, b))
    area_a, area_b = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))
    low, high = torch.max(a[:, None, :2], b[:, :2]), torch.min(a[:, None, 2:], b[:, 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = area_a[:, None] + area_b - overlap
    low, high = torch.min(a[:, None, :2], b[:, :2]), torch.max(a[:, None, 2:], b[:, 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return overlap / (union + eps) - (hull - union) / (hull + eps)


def costs(outputs, targets, weights=(1, 1, 1), class_cost=None, eps=0.0):
    """Each image's [N, M], in the dtype given.

    ``class_cost`` makes costs of logits [N, C]; None: the softmax's.
    """
    blocks = []
    for b, target in enumerate(targets):
        logits, boxes = outputs["pred_logits"][b], outputs["pred_boxes"][b]
        per_class = -logits.softmax(-1) if class_cost is None else class_cost(logits)
        blocks.append(
            weights[0] * per_class[:, target["labels"]]
            + weights[1] * torch.cdist(boxes, target["boxes"], p=1)
            - weights[2] * giou(boxes, target["boxes"], eps)
        )
    return blocks


def solved(blocks):
    pairs = [linear_sum_assignment(cost.numpy()) for cost in blocks]
    return [(torch.as_tensor(i), torch.as_tensor(j)) for i, j in pairs]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for pair, expected in zip(ours, theirs, strict=True):
        assert isinstance(pair, tuple) and len(pair) == 2
        for index, wanted in zip(pair, expected, strict=True):
            assert index.dtype == torch.int64 and index.device == wanted.device
            assert index.tolist() == wanted.tolist()


def assert_same_call(ours, theirs, methods=("__init__", "forward")):
    """Names, order, kinds and defaults of the parameters; annotations may differ."""

    def parameters(kind, method):
        found = inspect.signature(getattr(kind, method)).parameters.values()
        return [p.replace(annotation=inspect.Parameter.empty) for p in found]

    for method in methods:
        assert parameters(ours, method) == parameters(theirs, method)


def assert_not_constant(pairs_of_batches):
    """The comparisons were of many different matchings, few of them query n to target n."""
    flat = {(tuple(i.tolist()), tuple(j.tolist())) for pairs in pairs_of_batches for i, j in pairs}
    assert len(flat) > 20
    assert sum(i != j for i, j in flat) > 0.8 * len(flat)


def import_or_skip(name):
    """A package that is too large to ask for: its tests run where it is installed."""
    return pytest.importorskip(name, reason=f"{name} is not installed: its matcher is not compared")
