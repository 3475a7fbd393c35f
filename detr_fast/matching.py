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

from detr_fast import _C, faults, matching_cuda
from detr_fast.matching_cuda import CostOptions
from detr_fast.matching_input import MatchingInput, read
from detr_fast.packing import Matches, PackedTargets

Pairs = list[tuple[Tensor, Tensor]]  # one (query indices, target indices) per image
Targets = PackedTargets | Sequence[Mapping[str, Tensor]]

_DEFAULTS = {
    "class_cost": "softmax",
    "focal_alpha": 0.25,
    "focal_gamma": 2.0,
    "focal_eps": 1e-8,
    "giou_guard": "none",
    "giou_eps": 1e-6,
    "nonfinite": "raise",
    "index_device": None,
    "validate": "deferred",
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
    half-precision arithmetic) and the assignment is solved in float64.

    CUDA predictions are matched on their GPU, on the current stream, and the host waits for
    nothing: indices stay there, targets on the CPU are taken there by one asynchronous copy, and
    bad values are reported by a later call (see ``validate``). Tensors of other devices are copied
    to the CPU in one transfer per call. Under ``torch.compile`` the whole matching is one operator.

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
        index_device: ``"cpu"`` for indices on the CPU, as the published matcher returns them. For
            CUDA predictions this makes the host wait. Default: where the predictions are.
        validate: when bad values in CUDA tensors are reported. ``"deferred"``: by the next call
            that finds the report there, or by :func:`detr_fast.check_faults`; the image's targets
            have no match then, and its lists pair query k with target k. ``"sync"``: at once, at
            the price of a wait. CPU tensors are always checked at once.

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
        index_device: str | None = None,
        validate: str = "deferred",
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
            ("index_device", index_device, (None, "cpu")),
            ("validate", validate, ("deferred", "sync")),
        ):
            if choice not in choices:
                wanted = ", ".join(map(str, choices))
                raise ValueError(f"{name} is {choice!r}, but must be one of {wanted}")
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
        self.index_device = index_device
        self.validate = validate

    def extra_repr(self) -> str:
        names = ["cost_class", "cost_bbox", "cost_giou"]
        names += [name for name, usual in _DEFAULTS.items() if getattr(self, name) != usual]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(self, outputs: Mapping[str, Tensor], targets: Targets) -> Pairs:
        """Matches one decoder layer's predictions.

        Args:
            outputs: ``{"pred_logits": [B, N, K + 1], "pred_boxes": [B, N, 4] cxcywh}``, the logits
                [B, N, K] for the focal cost; other entries are ignored.
            targets: B dicts ``{"labels": [M] integers in 0..K-1, "boxes": [M, 4] cxcywh}``; other
                entries are ignored. M may be 0, and may exceed N. Or a ``PackedTargets``.

        Returns:
            For each image ``(index_i, index_j)``: int64 tensors of length min(N, M) with the
            matched queries, ascending, and the target of each.

        Raises:
            ValueError: for a missing key, a wrong shape or dtype, B other than ``len(targets)``, a
                label outside 0..K-1, a target box that is not finite or has a negative side, and,
                unless ``nonfinite="last"``, a prediction for which no cost exists (NaN, inf, a
                negative side). The message names the place. Predictions of images without targets
                are not looked at.
        """
        return self._match([outputs], None, targets)[0]

    def match_layers(self, layers: Sequence[Mapping[str, Tensor]], targets: Targets) -> list[Pairs]:
        """Matches several decoder layers' predictions, each on its own, in one compiled call.

        Args:
            layers: L dicts like ``outputs`` of :meth:`forward`, all of one shape, for example
                ``[outputs, *outputs["aux_outputs"]]``. Contiguous tensors are read in place.
            targets: as in :meth:`forward`.

        Returns:
            For each layer, what :meth:`forward` returns.

        Raises:
            ValueError: as :meth:`forward`, and for layers of differing shapes.
        """
        names = [f"layers[{k}]" for k in range(len(layers))]
        return self._match(layers, names, targets) if layers else []

    def match_packed(self, layers: Sequence[Mapping[str, Tensor]], targets: Targets) -> Matches:
        """As :meth:`match_layers`, with a result in one tensor that needs no sizes from the host.

        Args:
            layers: as in :meth:`match_layers`, at least one.
            targets: as in :meth:`forward`, or ``PackedTargets`` of a fixed capacity, which this
                method alone takes: for CUDA graphs.

        Returns:
            The query of each target, and the targets packed, on the predictions' device.

        Raises:
            ValueError: as :meth:`match_layers`.
        """
        names = [f"layers[{k}]" for k in range(len(layers))]
        if _on_gpu(layers):
            matching_cuda.require_build()
            logits, boxes = matching_cuda.read_layers(layers, names)
            packed = targets if isinstance(targets, PackedTargets) else PackedTargets.pack(targets)
            if packed.device.type == "cpu" and not packed.buffer.is_pinned():
                packed = packed.pin_memory()
            packed = packed.to(logits[0].device)
            given = matching_cuda.read_targets(packed, len(logits[0]), logits[0].device)
            query_index, _ = matching_cuda.launch(
                logits, boxes, given, self._options(), with_pairs=False
            )
            self._validate(logits[0].device)
            return Matches(query_index, packed)
        packed = targets if isinstance(targets, PackedTargets) else PackedTargets.pack(targets)
        images = packed.unpack()
        index, sizes = self._solve_on_cpu(layers, names, images)
        query_index = _query_index(
            index.view(len(layers), -1),
            sizes,
            [len(image["labels"]) for image in images],
            len(packed.labels),
        )
        device = layers[0]["pred_logits"].device
        return Matches(query_index.to(device), packed.to(device))

    def _options(self) -> CostOptions:
        eps = self.giou_eps
        return CostOptions(
            (self.cost_class, self.cost_bbox, self.cost_giou),
            self.class_cost == "focal",
            (self.focal_alpha, self.focal_gamma, self.focal_eps),
            (eps if self.giou_guard == "eps" else 0, eps if self.giou_guard == "clamp" else 0),
            self.nonfinite == "last",
        )

    def _validate(self, device: torch.device) -> None:
        if self.validate == "sync" and device.type == "cuda":
            faults.check_faults(device)

    def _match(
        self,
        layers: Sequence[Mapping[str, Tensor]],
        names: Sequence[str] | None,  # what to call each layer in an error; None: "outputs"
        targets: Targets,
    ) -> list[Pairs]:
        if _on_gpu(layers):
            index, sizes = self._solve_on_gpu(layers, names or ["outputs"], targets)
        else:
            if isinstance(targets, PackedTargets):
                targets = targets.unpack()
            index, sizes = self._solve_on_cpu(layers, names, targets)
        # For each layer and image the queries, then the targets.
        parts = index.split_with_sizes([size for size in sizes for _ in range(2)] * len(layers))
        matches = list(zip(parts[::2], parts[1::2], strict=True))
        b = len(sizes)
        return [matches[k * b : (k + 1) * b] for k in range(len(layers))]

    def _solve_on_gpu(
        self, layers: Sequence[Mapping[str, Tensor]], names: Sequence[str], targets: Targets
    ) -> tuple[Tensor, list[int]]:  # as _C.match's index; pairs of each image
        matching_cuda.require_build()
        logits, boxes = matching_cuda.read_layers(layers, names)
        b, n, _ = logits[0].shape
        device = logits[0].device
        if isinstance(targets, PackedTargets) and targets.counts is None:
            raise ValueError(
                "targets were packed with a capacity, so that the host does not know the sizes of "
                "lists: use match_packed"
            )
        given = matching_cuda.read_targets(targets, b, device)
        _, index = matching_cuda.launch(logits, boxes, given, self._options(), with_pairs=True)
        if self.index_device == "cpu":
            index = index.cpu()
            faults.raise_found(device)  # the copy has waited
        self._validate(device)
        return index, [min(n, m) for m in given.counts]

    def _solve_on_cpu(
        self,
        layers: Sequence[Mapping[str, Tensor]],
        names: Sequence[str] | None,
        targets: Sequence[Mapping[str, Tensor]],
    ) -> tuple[Tensor, list[int]]:  # as _C.match's index; pairs of each image
        given = read(layers, names or ["outputs"], targets)
        n = given.shape[1]
        sizes = [min(n, m) for m in given.counts]
        index = torch.empty(2 * sum(sizes) * len(layers), dtype=torch.int64, device="cpu")
        options = self._options()
        fault = _C.match(
            logits=given.logits,
            boxes=given.boxes,
            shape=given.shape,
            dtypes=given.dtypes,
            labels=given.labels,
            target_boxes=given.target_boxes,
            counts=given.counts,
            cost=options[:4],
            nonfinite_last=options.nonfinite_last,
            index=index.data_ptr(),
            threads=torch.get_num_threads(),
        )
        if fault[0] != _C.Status.ok:
            _raise_fault(fault, names or ["outputs"], given, layers, targets, self.class_cost)
        return index, sizes


def _on_gpu(layers: Sequence[Mapping[str, Tensor]]) -> bool:
    try:
        return layers[0]["pred_logits"].is_cuda
    except (KeyError, IndexError, TypeError, AttributeError):
        return False  # the CPU's path says what is wrong


def _query_index(
    index: Tensor,  # [L, 2 * P]: for each image its queries, then their targets
    sizes: Sequence[int],  # pairs of each image
    counts: Sequence[int],  # targets of each image
    total: int,  # T
) -> Tensor:  # [L, T]
    query_index = index.new_full((len(index), total), -1)
    begin = offset = 0
    for size, count in zip(sizes, counts, strict=True):
        end = begin + 2 * size
        queries, of_image = index[:, begin : begin + size], index[:, begin + size : end]
        query_index[:, offset : offset + count].scatter_(1, of_image, queries)
        begin, offset = end, offset + count
    return query_index


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
