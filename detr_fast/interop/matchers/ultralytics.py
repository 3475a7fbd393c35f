"""The matcher of ultralytics 8.4 (``ultralytics/models/utils/ops.py``), used by its RT-DETR."""

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from torch import Tensor

from detr_fast.interop.matchers.shared import Matcher, fast_matcher, match, place
from detr_fast.matching import Pairs


class HungarianMatcher(Matcher):
    """The matcher of ultralytics' RT-DETR; 1e-7 is added to GIoU's divisors.

    A pair whose cost is not finite costs 0, on a scale where the GIoU term is 1 - GIoU.

    Args:
        cost_gain: ``{"class": ..., "bbox": ..., "giou": ...}``, the weights; None: 1, 5 and 2.
        use_fl: the focal class cost instead of minus the softmax probability. Both take logits of
            K classes: there is no "no object".
        alpha, gamma: of the focal cost.

    Raises:
        KeyError: if ``cost_gain`` lacks a weight.
        ValueError: if all weights are 0.
    """

    def __init__(
        self,
        cost_gain: Mapping[str, float] | None = None,
        use_fl: bool = True,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.cost_gain = {"class": 1, "bbox": 5, "giou": 2} if cost_gain is None else cost_gain
        self.use_fl = use_fl
        self.alpha = alpha
        self.gamma = gamma
        fast_matcher(self, self._options())  # so that wrong weights raise here

    def _options(self) -> dict[str, Any]:
        return {
            "cost_class": self.cost_gain["class"],
            "cost_bbox": self.cost_gain["bbox"],
            "cost_giou": self.cost_gain["giou"],
            "class_cost": "focal" if self.use_fl else "softmax",
            "focal_alpha": self.alpha,
            "focal_gamma": self.gamma,
            "giou_guard": "eps",
            "giou_eps": 1e-7,
        }

    def forward(
        self,
        pred_bboxes: Tensor,  # [B, N, 4] cxcywh
        pred_scores: Tensor,  # [B, N, K] logits
        gt_bboxes: Tensor,  # [T, 4] cxcywh
        gt_cls: Tensor,  # [T]
        gt_groups: list[int],  # B times M
    ) -> Pairs:
        """Match one decoder layer's predictions.

        Args:
            pred_bboxes: predicted boxes as centre, width and height.
            pred_scores: logits.
            gt_bboxes: the boxes of all images' targets.
            gt_cls: their classes.
            gt_groups: how many of them each image has.

        Returns:
            For each image ``(index_i, index_j)``: int64 CPU tensors of length min(N, M) with the
            matched queries, ascending, and the target of each, counted across all images.

        Raises:
            ValueError: as :meth:`detr_fast.FastMatcher.forward`, but not for predictions of NaN or
                inf; if ``gt_groups`` does not sum up to T.
        """
        if not sum(gt_groups) == len(gt_cls) == len(gt_bboxes):
            raise ValueError(
                f"gt_groups {list(gt_groups)} sum up to {sum(gt_groups)}, but there are "
                f"{len(gt_bboxes)} gt_bboxes and {len(gt_cls)} gt_cls"
            )
        start = list(accumulate(gt_groups, initial=0))
        targets = [
            {"labels": labels, "boxes": boxes}
            for labels, boxes in zip(
                gt_cls.split(gt_groups), gt_bboxes.split(gt_groups), strict=True
            )
        ]
        outputs = {"pred_logits": pred_scores, "pred_boxes": pred_bboxes}
        try:
            pairs = match(self, self._options(), outputs, targets, self._fill, fill_nan_boxes=True)
        except ValueError as error:
            raise type(error)(_in_ultralytics_names(str(error), start)) from None
        return place(self, [(i, j + first) for (i, j), first in zip(pairs, start, strict=False)])

    def _fill(self, blocks: list[Tensor]) -> list[Tensor]:
        return [
            (cost + self.cost_gain["giou"]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            for cost in blocks
        ]


def _in_ultralytics_names(message: str, start: list[int]) -> str:
    def target(hit: re.Match) -> str:
        name = {"labels": "gt_cls", "boxes": "gt_bboxes"}[hit[2]]
        return f"{name}[{start[int(hit[1])] + int(hit[3])}]"

    message = re.sub(r"targets\[(\d+)\]\['(labels|boxes)'\]\[(\d+)\]", target, message)
    return message.replace("outputs['pred_logits']", "pred_scores").replace(
        "outputs['pred_boxes']", "pred_bboxes"
    )
