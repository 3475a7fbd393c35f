"""The matcher of facebookresearch/detr (``models/matcher.py``)."""

from typing import Any

from detr_fast.interop.matchers.shared import Matcher, Outputs, Targets, fast_matcher
from detr_fast.matching import Pairs


class HungarianMatcher(Matcher):
    """Carion et al., "End-to-End Object Detection with Transformers" (2020).

    Args:
        cost_class: weight of the class cost, minus the softmax probability of the target's label.
        cost_bbox: weight of the L1 distance of the cxcywh boxes.
        cost_giou: weight of minus the generalised IoU.

    Raises:
        ValueError: if all weights are 0.
    """

    def __init__(self, cost_class: float = 1, cost_bbox: float = 1, cost_giou: float = 1) -> None:
        super().__init__()
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        fast_matcher(self, self._options())  # so that wrong weights raise here

    def _options(self) -> dict[str, Any]:
        return {
            "cost_class": self.cost_class,
            "cost_bbox": self.cost_bbox,
            "cost_giou": self.cost_giou,
        }

    def forward(self, outputs: Outputs, targets: Targets) -> Pairs:
        """Match as :meth:`detr_fast.FastMatcher.forward`: same arguments, result and errors.

        A target labelled "no object" is an error; the original accepts it.
        """
        return self._match(outputs, targets)


def build_matcher(args: Any) -> HungarianMatcher:
    """Build one from ``args.set_cost_class``, ``set_cost_bbox`` and ``set_cost_giou``."""
    return HungarianMatcher(
        cost_class=args.set_cost_class,
        cost_bbox=args.set_cost_bbox,
        cost_giou=args.set_cost_giou,
    )
