"""The matchers of IDEA-Research/DINO (``models/dino/matcher.py``)."""

from typing import Any

import torch

from detr_fast.interop.matchers.shared import Matcher, Outputs, Targets, cost_blocks, fast_matcher
from detr_fast.matching import Pairs


class HungarianMatcher(Matcher):
    """Zhang et al., "DINO" (2022): focal class cost, and 1e-6 added to GIoU's divisors.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the focal class cost, of the L1 distance of
            the cxcywh boxes and of minus the generalised IoU.
        focal_alpha: of the focal cost, whose gamma is 2.

    Raises:
        ValueError: if all weights are 0.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        focal_alpha: float = 0.25,
    ) -> None:
        super().__init__()
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.focal_alpha = focal_alpha
        fast_matcher(self, self._options())  # so that wrong weights raise here

    def _options(self) -> dict[str, Any]:
        return {
            "cost_class": self.cost_class,
            "cost_bbox": self.cost_bbox,
            "cost_giou": self.cost_giou,
            "class_cost": "focal",
            "focal_alpha": self.focal_alpha,
            "giou_guard": "eps",
            "giou_eps": 1e-6,
        }

    def forward(self, outputs: Outputs, targets: Targets) -> Pairs:
        """Match as :meth:`detr_fast.FastMatcher.forward`; logits are [B, N, K]."""
        return self._match(outputs, targets)


class SimpleMinsumMatcher(HungarianMatcher):
    """Each target takes its cheapest query, whatever the others take. Plain torch.

    Arguments as for :class:`HungarianMatcher`.
    """

    @torch.compiler.disable
    def forward(self, outputs: Outputs, targets: Targets) -> Pairs:
        """Match as :class:`HungarianMatcher`, but each pair of indices has length M.

        They are on the predictions' device, as in the original, unless ``index_device`` is set on
        the matcher.
        """
        fast = fast_matcher(self, self._options())
        fast(outputs, targets)  # for its checks, a fraction of the time of what follows
        device = outputs["pred_logits"].device
        if "index_device" in self.__dict__:
            device = torch.device(self.index_device)
        return [
            (cost.argmin(0).to(device), torch.arange(cost.shape[1], device=device))
            for cost in cost_blocks(fast, outputs, targets)
        ]


def build_matcher(args: Any) -> HungarianMatcher:
    """Build one from ``args.matcher_type``, one of the two class names, ``set_cost_class``,
    ``set_cost_bbox``, ``set_cost_giou`` and ``focal_alpha``.

    Raises:
        ValueError: for another ``matcher_type``.
    """
    kinds = {"HungarianMatcher": HungarianMatcher, "SimpleMinsumMatcher": SimpleMinsumMatcher}
    if args.matcher_type not in kinds:
        raise ValueError(
            f"args.matcher_type is {args.matcher_type!r}, but must be one of {', '.join(kinds)}"
        )
    return kinds[args.matcher_type](
        cost_class=args.set_cost_class,
        cost_bbox=args.set_cost_bbox,
        cost_giou=args.set_cost_giou,
        focal_alpha=args.focal_alpha,
    )
