"""The matcher of fundamentalvision/Deformable-DETR (``models/matcher.py``)."""

from typing import Any

from detr_fast.interop.matchers import detr


class HungarianMatcher(detr.HungarianMatcher):
    """Zhu et al., "Deformable DETR" (2021): DETR's matcher with the focal class cost.

    alpha is 0.25 and gamma 2; logits are [B, N, K], without "no object".
    """

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "class_cost": "focal"}


def build_matcher(args: Any) -> HungarianMatcher:
    """Build one from ``args.set_cost_class``, ``set_cost_bbox`` and ``set_cost_giou``."""
    return HungarianMatcher(
        cost_class=args.set_cost_class,
        cost_bbox=args.set_cost_bbox,
        cost_giou=args.set_cost_giou,
    )
