"""The matching of DETR: which query answers for which target.

Carion et al., "End-to-End Object Detection with Transformers" (2020), section 3.1: among all
one-to-one pairings of an image's queries and targets, the one of least total cost

    cost = cost_class * class cost(label) + cost_bbox * |box - box'|_1 - cost_giou * GIoU(box, box')

Letters: B images, N queries, K classes (without "no object"), M targets of one image, T of all.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detr_fast import _C
from detr_fast.matching_input import MatchingInput, read

Pairs = list[tuple[Tensor, Tensor]]  # one (query indices, target indices) per image

_DEFAULTS = {
    "class_cost": "softmax",
    "focal_alpha": 0.25,
    "focal_gamma": 2.0,
    "focal_eps": 1e-8,
    "giou_guard": "none",
    "giou_eps": 1e-6,
    "nonfinite": "raise",
}


class FastMatcher(nn.Module):
    """Optimal one-to-one matching of predictions and targets, by compiled code.

    A drop-in for the published ``HungarianMatcher``: same arguments, same result. (The defaults are
    the weights that the published training passes, 1, 5 and 2; that class's own are 1, 1 and 1.)

    Each image's own N x M costs are computed, never the whole batch's, and all images and all
    decoder layers are matched in one call of compiled code that releases the GIL and uses as many
    threads as ``torch.get_num_threads()`` says, if the work is worth it. No gradient flows through
    it.

    Contiguous CPU predictions are read in place whatever their precision. Costs are computed in
    float32 (in float64 if a prediction is float64, so that near-ties may fall differently than in
    half-precision arithmetic) and the assignment is solved in float64. Tensors on another device
    are copied to the CPU in one transfer per call.

    Args:
        cost_class: weight of the class cost.
        cost_bbox: weight of the L1 distance of the cxcywh boxes.
        cost_giou: weight of minus the generalised IoU.
        class_cost: ``"softmax"``, minus the softmax probability p of the target's label, or
            ``"focal"``, with p the label's sigmoid (Deformable DETR, Zhu et al. 2021)::

                -alpha * (1 - p)**gamma * log(p + eps) + (1 - alpha) * p**gamma * log(1 - p + eps)

            With ``"focal"`` the logits have K entries: none stands for "no object".
        focal_alpha, focal_gamma, focal_eps: of the focal cost.
        giou_guard: how GIoU divides by an area x, either of the union or of the hull. ``"none"``:
            by x, and 0/0 counts as 0. ``"eps"``: by x + giou_eps. ``"clamp"``: by
            max(x, giou_eps).
        giou_eps: of ``giou_guard``.
        nonfinite: what to do where a pair has no finite cost (NaN or inf among the predictions, a
            predicted box of negative width or height, or an overflow). ``"raise"`` a ValueError, or
            put such pairs ``"last"``: as few of them are matched as possible.

    Raises:
        ValueError: if all weights are 0, one is not finite, or an option has no meaning.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 5,
        cost_giou: float = 2,
        *,
        class_cost: str = "softmax",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        focal_eps: float = 1e-8,
        giou_guard: str = "none",
        giou_eps: float = 1e-6,
        nonfinite: str = "raise",
    ) -> None:
        super().__init__()
        for name, cost in (
            ("cost_class", cost_class),
            ("cost_bbox", cost_bbox),
            ("cost_giou", cost_giou),
        ):
            if not math.isfinite(cost):
                raise ValueError(f"{name} is {cost}, but must be finite")
        if cost_class == cost_bbox == cost_giou == 0:
            raise ValueError("all costs can't be 0: cost_class, cost_bbox and cost_giou are")
        for name, choice, choices in (
            ("class_cost", class_cost, ("softmax", "focal")),
            ("giou_guard", giou_guard, ("none", "eps", "clamp")),
            ("nonfinite", nonfinite, ("raise", "last")),
        ):
            if choice not in choices:
                raise ValueError(f"{name} is {choice!r}, but must be one of {', '.join(choices)}")
        if not 0 <= focal_alpha <= 1:
            raise ValueError(f"focal_alpha is {focal_alpha}, but must be in 0..1")
        if not 0 <= focal_gamma < math.inf:
            raise ValueError(f"focal_gamma is {focal_gamma}, but must be finite and not negative")
        for name, eps in (("focal_eps", focal_eps), ("giou_eps", giou_eps)):
            if not 1e-30 <= eps <= 1:  # a float32 can hold it, and its logarithm
                raise ValueError(f"{name} is {eps}, but must be in 1e-30..1")
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.class_cost = class_cost
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.focal_eps = focal_eps
        self.giou_guard = giou_guard
        self.giou_eps = giou_eps
        self.nonfinite = nonfinite

    def extra_repr(self) -> str:
        names = ["cost_class", "cost_bbox", "cost_giou"]
        names += [name for name, usual in _DEFAULTS.items() if getattr(self, name) != usual]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> Pairs:
        """Matches one decoder layer's predictions.

        Args:
            outputs: ``{"pred_logits": [B, N, K + 1], "pred_boxes": [B, N, 4] cxcywh}``, the logits
                [B, N, K] for the focal cost; other entries are ignored.
            targets: B dicts ``{"labels": [M] integers in 0..K-1, "boxes": [M, 4] cxcywh}``; other
                entries are ignored. M may be 0, and may exceed N.

        Returns:
            For each image ``(index_i, index_j)``: int64 CPU tensors of length min(N, M) with the
            matched queries, ascending, and the target of each.

        Raises:
            ValueError: for a missing key, a wrong shape or dtype, B other than ``len(targets)``, a
                label outside 0..K-1, a target box that is not finite or has a negative side, and,
                unless ``nonfinite="last"``, a prediction for which no cost exists (NaN, inf, a
                negative side). The message names the place. Predictions of images without targets
                are not looked at.
        """
        return self._match([outputs], None, targets)[0]

    def match_layers(
        self, layers: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[Pairs]:
        """Matches several decoder layers' predictions, each on its own, in one compiled call.

        Args:
            layers: L dicts like ``outputs`` of :meth:`forward`, all of one shape, for example
                ``[outputs, *outputs["aux_outputs"]]``. Contiguous CPU tensors are read in place.
            targets: as in :meth:`forward`.

        Returns:
            For each layer, what :meth:`forward` returns.

        Raises:
            ValueError: as :meth:`forward`, and for layers of differing shapes.
        """
        names = [f"layers[{k}]" for k in range(len(layers))]
        return self._match(layers, names, targets) if layers else []

    def _match(
        self,
        layers: Sequence[Mapping[str, Tensor]],
        names: Sequence[str] | None,  # what to call each layer in an error; None: "outputs"
        targets: Sequence[Mapping[str, Tensor]],
    ) -> list[Pairs]:
        given = read(layers, names or ["outputs"], targets)
        b, n, _ = given.shape
        pairs = [min(n, m) for m in given.counts]
        # For each layer and image the queries, then the targets.
        sizes = [size for size in pairs for _ in range(2)] * len(layers)
        index = torch.empty(sum(sizes), dtype=torch.int64, device="cpu")
        eps = self.giou_eps
        fault = _C.match(
            logits=given.logits,
            boxes=given.boxes,
            shape=given.shape,
            dtypes=given.dtypes,
            labels=given.labels,
            target_boxes=given.target_boxes,
            counts=given.counts,
            cost=(
                (self.cost_class, self.cost_bbox, self.cost_giou),
                self.class_cost == "focal",
                (self.focal_alpha, self.focal_gamma, self.focal_eps),
                (eps if self.giou_guard == "eps" else 0, eps if self.giou_guard == "clamp" else 0),
            ),
            nonfinite_last=self.nonfinite == "last",
            index=index.data_ptr(),
            threads=torch.get_num_threads(),
        )
        if fault[0] != _C.Status.ok:
            _raise_fault(fault, names or ["outputs"], given, layers, targets, self.class_cost)
        parts = index.split_with_sizes(sizes)
        matches = list(zip(parts[::2], parts[1::2], strict=True))
        return [matches[k * b : (k + 1) * b] for k in range(len(layers))]


_BOX_RULE = "but cx, cy, w, h must be finite and w, h not negative"


def _raise_fault(
    fault: tuple,
    names: Sequence[str],
    given: MatchingInput,
    layers: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    class_cost: str,
) -> None:
    status, problem, n, m = fault
    if status == _C.Status.out_of_memory:
        raise MemoryError("no memory for the costs of one image's queries x targets")
    if status == _C.Status.invalid_label:
        classes = given.shape[2] - (class_cost == "softmax")
        raise ValueError(
            f"targets[{problem}]['labels'][{m}] is {int(targets[problem]['labels'][m])}, but "
            f"logits have {classes} classes (0..{classes - 1})"
        )
    if status == _C.Status.invalid_target_box:
        box = targets[problem]["boxes"][m].tolist()
        raise ValueError(f"targets[{problem}]['boxes'][{m}] is {box}, {_BOX_RULE}")
    layer, b = divmod(problem, given.shape[0])
    name = names[layer]
    if status == _C.Status.invalid_logits:
        reason = (
            "has no softmax: it holds NaN, inf or only -inf"
            if class_cost == "softmax"
            else "has no focal cost: it holds NaN"
        )
        raise ValueError(f"{name}['pred_logits'][{b}, {n}] {reason}")
    if status == _C.Status.invalid_box:
        box = layers[layer]["pred_boxes"][b, n].tolist()
        raise ValueError(f"{name}['pred_boxes'][{b}, {n}] is {box}, {_BOX_RULE}")
    raise ValueError(
        f"the cost of matching {name}['pred_boxes'][{b}] to targets[{b}]['boxes'][{m}] overflows"
    )
