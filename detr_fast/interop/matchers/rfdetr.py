"""The matcher of roboflow/rf-detr 1.11 (``rfdetr/models/matcher.py``)."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.interop.matchers.shared import (
    Matcher,
    Outputs,
    Targets,
    fast_matcher,
    match_groups,
    place,
)
from detr_fast.matching import Pairs


class HungarianMatcher(Matcher):
    """RF-DETR's matcher, for detection.

    The focal class cost (gamma 2) is computed from the logit, without an epsilon, and GIoU divides
    by no less than 1e-7. Pairs without a finite cost are matched last, with one warning.

    Under autocast the original computes the focal cost in bfloat16, this one in float32 from the
    same bfloat16 logits.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the class cost, of the L1 distance of the
            cxcywh boxes and of minus the generalised IoU.
        focal_alpha: of the focal cost.
        use_pos_only, use_position_modulated_cost: without effect, as in the original.
        mask_point_sample_ratio, cost_mask_ce, cost_mask_dice, num_keypoints_per_class,
        keypoint_l1_loss_coef, keypoint_findable_loss_coef, keypoint_visible_loss_coef,
        keypoint_nll_loss_coef: of the costs of masks and keypoints. They have no effect: this
            matcher has no such costs, and ``forward`` refuses targets that need them.

    Raises:
        ValueError: if the first three weights are 0.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        focal_alpha: float = 0.25,
        use_pos_only: bool = False,
        use_position_modulated_cost: bool = False,
        mask_point_sample_ratio: int = 16,
        cost_mask_ce: float = 1,
        cost_mask_dice: float = 1,
        num_keypoints_per_class: list[int] | None = None,
        keypoint_l1_loss_coef: float = 0.0,
        keypoint_findable_loss_coef: float = 0.0,
        keypoint_visible_loss_coef: float = 0.0,
        keypoint_nll_loss_coef: float = 0.0,
    ) -> None:
        super().__init__()
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.focal_alpha = focal_alpha
        self._warned = False
        fast_matcher(self, self._options())  # so that wrong weights raise here

    def _options(self) -> dict[str, Any]:
        return {
            "cost_class": self.cost_class,
            "cost_bbox": self.cost_bbox,
            "cost_giou": self.cost_giou,
            "class_cost": "focal",
            "focal_alpha": self.focal_alpha,
            "focal_eps": 1e-30,  # the smallest allowed: the original has none
            "giou_guard": "clamp",
            "giou_eps": 1e-7,
        }

    def forward(
        self,
        outputs: Outputs,
        targets: Targets,
        group_detr: int = 1,
        target_side_safety: Any = None,
    ) -> Pairs:
        """Match one decoder layer's predictions.

        Args:
            outputs, targets: as for :meth:`detr_fast.FastMatcher.forward`, the logits [B, N, K].
            group_detr: the number G of query groups, each N / G consecutive queries that are
                matched separately.
            target_side_safety: a hint that the original uses; ignored here.

        Returns:
            For each image ``(index_i, index_j)``: the groups' indices one after the other.

        Raises:
            ValueError: as :meth:`detr_fast.FastMatcher.forward`, but not for predictions of NaN or
                inf; if G does not divide N; for targets with masks or padding; for targets with
                keypoints, if the outputs have ``pred_keypoints``.
        """
        queries = outputs["pred_logits"].shape[1]
        if group_detr < 1 or queries % group_detr:
            raise ValueError(
                f"num_queries ({queries}) must be divisible by group_detr ({group_detr})"
            )
        _refuse_unknown(outputs, targets)
        pairs = match_groups(
            self, self._options(), outputs, targets, group_detr, self._fill, fill_nan_boxes=True
        )
        return place(self, pairs)

    def _fill(self, blocks: list[Tensor]) -> list[Tensor]:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "some predictions have no finite matching cost (NaN or inf); they are matched last",
                stacklevel=2,
            )
        known = torch.cat([cost[cost.isfinite()] for cost in blocks])
        last = torch.finfo(torch.float32).max
        if len(known):
            last = min(last, float(known.max() + known.abs().max() + 1))
        return [cost.masked_fill(~cost.isfinite(), last) for cost in blocks]


def _refuse_unknown(outputs: Outputs, targets: Sequence) -> None:
    known = ("masks", "valid") + (("keypoints",) if "pred_keypoints" in outputs else ())
    for b, target in enumerate(targets):
        for key in known:
            if key in target:
                raise ValueError(
                    f"targets[{b}] has {key!r}, for which this matcher has no cost: it is only for "
                    "detection. Use RF-DETR's own matcher"
                )


def build_matcher(args: Any) -> HungarianMatcher:
    """Build one from ``args.set_cost_class``, ``set_cost_bbox``, ``set_cost_giou`` and
    ``focal_alpha``.

    Raises:
        ValueError: if ``args.segmentation_head`` is true.
    """
    if args.segmentation_head:
        raise ValueError("args.segmentation_head is true, but this matcher has no mask cost")
    return HungarianMatcher(
        cost_class=args.set_cost_class,
        cost_bbox=args.set_cost_bbox,
        cost_giou=args.set_cost_giou,
        focal_alpha=args.focal_alpha,
    )
