"""The matcher of lyuwenyu/RT-DETR, version 2 (``rtdetrv2_pytorch/src/zoo/rtdetr/matcher.py``)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from detr_fast.interop.matchers.shared import (
    Matcher,
    Outputs,
    Targets,
    fast_matcher,
    match,
    place,
)
from detr_fast.matching import Pairs
from detr_fast.matching.options import WEIGHTS


class HungarianMatcher(Matcher):
    """Lv et al., "RT-DETRv2" (2024).

    Args:
        weight_dict: ``{"cost_class": ..., "cost_bbox": ..., "cost_giou": ...}``.
        use_focal_loss: the focal class cost instead of minus the softmax probability. Both take
            logits [B, N, K]: there is no "no object".
        alpha, gamma: of the focal cost.

    Raises:
        KeyError: if ``weight_dict`` lacks a weight.
        ValueError: if it has any other key, or all weights are 0.
    """

    __share__: ClassVar[list[str]] = ["use_focal_loss"]  # read by the original's config system

    def __init__(
        self,
        weight_dict: Mapping[str, float],
        use_focal_loss: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        for name in weight_dict:
            if name not in WEIGHTS:
                raise ValueError(
                    f"weight_dict has {name!r}, but must have only {', '.join(WEIGHTS)}"
                )
        self.cost_class = weight_dict["cost_class"]
        self.cost_bbox = weight_dict["cost_bbox"]
        self.cost_giou = weight_dict["cost_giou"]
        self.use_focal_loss = use_focal_loss
        self.alpha = alpha
        self.gamma = gamma
        fast_matcher(self, self._options())  # so that wrong weights raise here

    def _options(self) -> dict[str, Any]:
        return {
            "cost_class": self.cost_class,
            "cost_bbox": self.cost_bbox,
            "cost_giou": self.cost_giou,
            "class_cost": "focal" if self.use_focal_loss else "softmax",
            "focal_alpha": self.alpha,
            "focal_gamma": self.gamma,
        }

    def forward(self, outputs: Outputs, targets: Targets) -> dict[str, Pairs]:
        """Match as :meth:`detr_fast.FastMatcher.forward`, but return ``{"indices": ...}``."""
        return {"indices": place(self, match(self, self._options(), outputs, targets))}
