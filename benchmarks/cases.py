"""Matching problems to measure with: three families of predictions in several sizes, all seeded.

initial  what an untrained model predicts: all queries of an image nearly alike, so that targets
         compete for the same few queries. The hardest for a solver.
random   independent predictions.
trained  one query per target close to it and sure of its label, the others "no object". The
         easiest: nearly every target's cheapest query is its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from detr_fast.reference import matching_cost

FAMILIES = ("initial", "random", "trained")


@dataclass(frozen=True)
class Case:
    """Letters: B images, N queries, K classes, M targets per image, L layers.

    The number of targets of an image varies from 1 to M; if ``exact``, it is M.
    """

    family: str
    images: int
    queries: int
    classes: int
    targets: int
    layers: int = 6
    exact: bool = False

    @property
    def name(self) -> str:
        return (
            f"{self.family} L{self.layers} B{self.images} N{self.queries} K{self.classes} "
            f"M{'=' if self.exact else ''}{self.targets}"
        )

    def about(self) -> dict[str, object]:
        """What a row says of it; a problem is one layer of one image."""
        return {
            "family": self.family,
            "problems": self.layers * self.images,
            "queries": self.queries,
            "targets": self.targets,
        }


def make(case: Case, seed: int, device: str = "cpu") -> tuple[list[dict], list[dict]]:
    """Layers and targets as FastMatcher.match_layers takes them, float32, alike on any device."""
    g = torch.Generator().manual_seed(seed)
    b, n, k = case.images, case.queries, case.classes

    targets = []
    for _ in range(b):
        m = int(torch.randint(1, case.targets + 1, (), generator=g))
        m = case.targets if case.exact else m
        labels = torch.randint(0, k, (m,), generator=g)
        targets.append({"labels": labels, "boxes": _boxes((m,), g)})

    layers = []
    for _ in range(case.layers):
        logits = torch.randn(b, n, k + 1, generator=g)
        boxes = _boxes((b, n), g)
        if case.family == "initial":
            # As the heads of an initialised model: shared by all queries, plus little of their own.
            logits = 0.5 * logits[:, :1] + 0.05 * logits
            boxes = (0.5 + 0.02 * torch.randn(b, 1, 4, generator=g)) + 0.02 * (boxes - 0.5)
        elif case.family == "trained":
            logits[..., k] += 6  # "no object"
            for image, target in enumerate(targets):
                m = min(n, len(target["labels"]))
                query = torch.randperm(n, generator=g)[:m]
                near = target["boxes"][:m] + 0.01 * torch.randn(m, 4, generator=g)
                boxes[image, query] = near.clamp(0.001, 1)
                logits[image, query, target["labels"][:m]] += 10
        layers.append({"pred_logits": logits, "pred_boxes": boxes})
    layers, targets = (
        [{name: value.to(device) for name, value in item.items()} for item in items]
        for items in (layers, targets)
    )
    return layers, targets


def cost_matrices(
    family: str, count: int, queries: int, targets: int, exact: bool, seed: int
) -> list[np.ndarray]:  # count of [M, N] float32, rows are targets
    """Bare assignment problems: the matching costs of six decoder layers' predictions.

    The first of a longer list are those of a shorter one.
    """
    parts = range(-(-count // 96))
    case = Case(family, 16, queries, 91, targets, exact=exact)
    matrices = [matrix for part in parts for matrix in _cost_matrices(case, seed + part)]
    return matrices[:count]


@lru_cache(maxsize=64)
def _cost_matrices(case: Case, seed: int) -> list[np.ndarray]:
    layers, targets = make(case, seed)
    return [cost.contiguous().numpy() for cost in costs_of(layers, targets)]


def costs_of(layers: list[dict], targets: list[dict]) -> Iterator[torch.Tensor]:
    """The costs [M, N] of each image in each layer, one by one."""
    for layer in layers:
        for b, target in enumerate(targets):
            logits, boxes = layer["pred_logits"][b], layer["pred_boxes"][b]
            yield matching_cost(logits, boxes, target["labels"], target["boxes"]).T


def _boxes(shape: tuple[int, ...], g: torch.Generator) -> torch.Tensor:  # [*shape, 4] cxcywh
    sides = 0.02 + 0.4 * torch.rand(*shape, 2, generator=g)
    centres = sides / 2 + (1 - sides) * torch.rand(*shape, 2, generator=g)
    return torch.cat([centres, sides], -1)
