"""The matchers of Hugging Face transformers 5 (``transformers.loss``).

Predictions are called ``logits`` and ``pred_boxes``, targets ``class_labels`` and ``boxes``. Pairs
whose cost is not finite are matched last; a predicted box of NaN is an error, as in the originals.
With the softmax cost every logit may be a target's class, as some models there have no "no object".
"""

from typing import Any

from torch import nn

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
    """The matcher of DETR (``loss_for_object_detection``).

    Args:
        class_cost: weight of the class cost, minus the softmax probability of the target's label.
        bbox_cost: weight of the L1 distance of the cxcywh boxes.
        giou_cost: weight of minus the generalised IoU.

    Raises:
        ValueError: if all weights are 0.
    """

    def __init__(self, class_cost: float = 1, bbox_cost: float = 1, giou_cost: float = 1) -> None:
        super().__init__()
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        fast_matcher(self, self._options())  # so that wrong weights raise here

    def _options(self) -> dict[str, Any]:
        return _weights(self)

    def forward(self, outputs: Outputs, targets: Targets) -> Pairs:
        """Match one decoder layer's predictions.

        Args:
            outputs: ``{"logits": [B, N, C], "pred_boxes": [B, N, 4] cxcywh}``; other entries are
                ignored.
            targets: B dicts ``{"class_labels": [M] integers in 0..C-1, "boxes": [M, 4] cxcywh}``.

        Returns:
            For each image ``(index_i, index_j)``: int64 CPU tensors of length min(N, M) with the
            matched queries, ascending, and the target of each.

        Raises:
            ValueError: as :meth:`detr_fast.FastMatcher.forward`, but not for logits of NaN or inf
                and infinite boxes.
        """
        return _match(self, _weights(self), outputs, targets)


class DeformableDetrHungarianMatcher(HungarianMatcher):
    """The matcher of Deformable, Conditional, DAB DETR (``loss_deformable_detr``): focal cost.

    Arguments as for :class:`HungarianMatcher`.
    """

    def _options(self) -> dict[str, Any]:
        return {**_weights(self), "class_cost": "focal"}

    def forward(self, outputs: Outputs, targets: Targets) -> Pairs:
        """Match as :meth:`HungarianMatcher.forward`."""
        return _match(self, {**_weights(self), "class_cost": "focal"}, outputs, targets)


class LwDetrHungarianMatcher(DeformableDetrHungarianMatcher):
    """The matcher of LW-DETR and RF-DETR (``loss_lw_detr``): focal class cost, query groups.

    Arguments as for :class:`HungarianMatcher`.
    """

    def forward(self, outputs: Outputs, targets: Targets, group_detr: int) -> Pairs:
        """Match as :meth:`HungarianMatcher.forward`, each of ``group_detr`` groups of consecutive
        queries separately; an image's pairs are those of its groups one after the other."""
        options = {**_weights(self), "class_cost": "focal"}
        return _match(self, options, outputs, targets, group_detr)


class RTDetrHungarianMatcher(Matcher):
    """The matcher of RT-DETR, RT-DETR v2, D-FINE and DEIMv2 (``loss_rt_detr``).

    Args:
        config: has ``matcher_class_cost``, ``matcher_bbox_cost``, ``matcher_giou_cost``, the
            weights; ``use_focal_loss``, whether the class cost is focal instead of minus the
            softmax probability; ``matcher_alpha`` and ``matcher_gamma`` of the focal cost.

    Raises:
        ValueError: if all weights are 0.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.class_cost = config.matcher_class_cost
        self.bbox_cost = config.matcher_bbox_cost
        self.giou_cost = config.matcher_giou_cost
        self.use_focal_loss = config.use_focal_loss
        self.alpha = config.matcher_alpha
        self.gamma = config.matcher_gamma
        fast_matcher(self, self._options())  # so that wrong weights raise here

    def _options(self) -> dict[str, Any]:
        return _rt_detr_options(self)

    def forward(self, outputs: Outputs, targets: Targets) -> Pairs:
        """Match as :meth:`HungarianMatcher.forward`."""
        return _match(self, _rt_detr_options(self), outputs, targets)


# The forward methods above call only the following functions and read only attributes that the
# originals have: patch_transformers puts them on the originals' classes.


def _weights(module: nn.Module) -> dict[str, Any]:
    return {
        "cost_class": module.class_cost,
        "cost_bbox": module.bbox_cost,
        "cost_giou": module.giou_cost,
        "class_cost": "softmax",
    }


def _rt_detr_options(module: nn.Module) -> dict[str, Any]:
    return {
        **_weights(module),
        "class_cost": "focal" if module.use_focal_loss else "softmax",
        "focal_alpha": module.alpha,
        "focal_gamma": module.gamma,
    }


def _match(
    module: nn.Module, options: dict[str, Any], outputs: Outputs, targets: Targets, groups: int = 1
) -> Pairs:
    predictions = {"pred_logits": outputs["logits"], "pred_boxes": outputs["pred_boxes"]}
    renamed = [{"labels": t["class_labels"], "boxes": t["boxes"]} for t in targets]
    try:
        return place(module, match_groups(module, options, predictions, renamed, groups, "last"))
    except ValueError as error:  # report it in transformers' names
        message = str(error).replace("'pred_logits'", "'logits'")
        raise type(error)(message.replace("'labels'", "'class_labels'")) from None
