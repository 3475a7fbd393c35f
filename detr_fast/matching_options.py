"""FastMatcher's options: checked, and as compiled code takes them."""

import math
import numbers
from typing import NamedTuple

_LARGEST_WEIGHT = 1e28  # float32 can hold the costs of coordinates up to 1e8


class CostOptions(NamedTuple):
    """The ``cost`` argument of ``_C.match``, followed by its ``nonfinite_last``."""

    weights: tuple[float, float, float]  # class, L1, GIoU
    focal: bool
    focal_options: tuple[float, float, float]  # alpha, gamma, eps
    giou_divisor: tuple[float, float]  # eps to add, lower limit
    nonfinite_last: bool


class MatcherOptions(NamedTuple):
    """The arguments of :class:`detr_fast.FastMatcher`, which describes them."""

    cost_class: float
    cost_bbox: float
    cost_giou: float
    class_cost: str
    focal_alpha: float
    focal_gamma: float
    focal_eps: float
    giou_guard: str
    giou_eps: float
    nonfinite: str
    index_device: object
    validate: str

    def checked(self) -> CostOptions:
        """Return those that compiled code takes.

        Raises:
            ValueError: for an option that is invalid; names it.
        """
        self._check_numbers()
        for name, choices in (
            ("class_cost", ("softmax", "focal")),
            ("giou_guard", ("none", "eps", "clamp")),
            ("nonfinite", ("raise", "last")),
            ("index_device", (None, "cpu")),
            ("validate", ("deferred", "sync")),
        ):
            choice = getattr(self, name)
            if name == "index_device" and choice is not None:
                choice = str(choice)  # it may be a torch.device
            if choice not in choices:
                allowed = ", ".join(map(str, choices))
                raise ValueError(f"{name} is {choice!r}, but must be one of {allowed}")
        eps = self.giou_eps
        return CostOptions(
            (self.cost_class, self.cost_bbox, self.cost_giou),
            self.class_cost == "focal",
            (self.focal_alpha, self.focal_gamma, self.focal_eps),
            (eps if self.giou_guard == "eps" else 0, eps if self.giou_guard == "clamp" else 0),
            self.nonfinite == "last",
        )

    def _check_numbers(self) -> None:
        weights = ("cost_class", "cost_bbox", "cost_giou")
        for name in (*weights, "focal_alpha", "focal_gamma", "focal_eps", "giou_eps"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real):
                raise ValueError(f"{name} is {value!r}, but must be a number")
        for name in weights:
            weight = getattr(self, name)
            if not abs(weight) <= _LARGEST_WEIGHT:
                raise ValueError(f"{name} is {weight}, but must be in +-{_LARGEST_WEIGHT:g}")
        if self.cost_class == self.cost_bbox == self.cost_giou == 0:
            raise ValueError("all costs can't be 0, but cost_class, cost_bbox and cost_giou are")
        if not 0 <= self.focal_alpha <= 1:
            raise ValueError(f"focal_alpha is {self.focal_alpha}, but must be in 0..1")
        gamma = self.focal_gamma
        if not 0 <= gamma < math.inf:
            raise ValueError(f"focal_gamma is {gamma}, but must be finite and not negative")
        for name, eps in (("focal_eps", self.focal_eps), ("giou_eps", self.giou_eps)):
            if not 1e-30 <= eps <= 1:  # a float32 can hold it, and its logarithm
                raise ValueError(f"{name} is {eps}, but must be in 1e-30..1")
