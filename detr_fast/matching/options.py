"""FastMatcher's options: checked, and as compiled code takes them."""

import math
from typing import NamedTuple

WEIGHTS = ("cost_class", "cost_bbox", "cost_giou")
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
        numbers = self._numbers()
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
        eps = numbers["giou_eps"]
        return CostOptions(
            tuple(numbers[name] for name in WEIGHTS),
            self.class_cost == "focal",
            (numbers["focal_alpha"], numbers["focal_gamma"], numbers["focal_eps"]),
            (eps if self.giou_guard == "eps" else 0, eps if self.giou_guard == "clamp" else 0),
            self.nonfinite == "last",
        )

    def _numbers(self) -> dict[str, float]:
        """Return the options that are numbers, in the precision in which they are checked."""
        numbers = {}
        for name in (*WEIGHTS, "focal_alpha", "focal_gamma", "focal_eps", "giou_eps"):
            value = getattr(self, name)
            try:
                numbers[name] = float(value + 0)  # which a text cannot
            except (TypeError, ValueError, RuntimeError):
                raise ValueError(f"{name} is {value!r}, but must be a number") from None
        for name in WEIGHTS:
            if not abs(numbers[name]) <= _LARGEST_WEIGHT:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but must be in +-{_LARGEST_WEIGHT:g}"
                )
        if not any(numbers[name] for name in WEIGHTS):
            raise ValueError("all costs can't be 0, but cost_class, cost_bbox and cost_giou are")
        if not 0 <= numbers["focal_alpha"] <= 1:
            raise ValueError(f"focal_alpha is {self.focal_alpha}, but must be in 0..1")
        if not 0 <= numbers["focal_gamma"] < math.inf:
            raise ValueError(
                f"focal_gamma is {self.focal_gamma}, but must be finite and not negative"
            )
        for name in ("focal_eps", "giou_eps"):
            if not 1e-30 <= numbers[name] <= 1:  # a float32 can hold it, and its logarithm
                raise ValueError(f"{name} is {getattr(self, name)}, but must be in 1e-30..1")
        return numbers
