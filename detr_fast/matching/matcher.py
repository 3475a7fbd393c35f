"""The matching of DETR: which query is assigned to which target.

Carion et al., "End-to-End Object Detection with Transformers" (2020), section 3.1: among all
one-to-one pairings of an image's queries and targets, the one of least total cost

    cost = cost_class * class cost(label) + cost_bbox * |box - box'|_1 - cost_giou * GIoU(box, box')

Letters: B images, N queries, K classes (without "no object"), M targets of one image, T of all
images.
"""

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detr_fast import faults
from detr_fast.matching import cpu, cuda, traced
from detr_fast.matching.options import CostOptions, MatcherOptions
from detr_fast.matching.packing import Matches, PackedTargets
from detr_fast.matching.placed import PlacedTargets, read_layers, read_targets
from detr_fast.ops.library import compute_dtype, has_kernels

Pairs = list[tuple[Tensor, Tensor]]  # one (query indices, target indices) per image
Targets = PackedTargets | Sequence[Mapping[str, Tensor]]


class FastMatcher(nn.Module):
    """Optimal one-to-one matching of predictions and targets, by compiled code.

    A drop-in for the published ``HungarianMatcher``: same arguments, same result. (The default
    weights are those of the published training, 1, 5 and 2; that class defaults to 1, 1 and 1.)

    Only each image's N x M costs are computed, never those of all pairs in the batch. All images
    and decoder layers are matched in one call of compiled code, which releases the GIL and uses up
    to ``torch.get_num_threads()`` threads, as the amount of work justifies. No gradient flows
    through it.

    Contiguous CPU predictions are read in place whatever their precision. Costs are computed in
    float32 (on the CPU in float64 if a prediction is float64, which on a GPU none may be), so
    near-ties between half-precision predictions may be decided differently than in half precision.
    The assignment is solved in float64.

    CUDA predictions are matched on their GPU, on the current stream, and the host waits for
    nothing: the indices stay on the GPU, targets on the CPU get there by one asynchronous copy, and
    bad values are reported by a later call (see ``validate``). Tensors on other devices, and CUDA
    tensors in a build without CUDA kernels, are copied to the CPU in one transfer per call, and the
    indices copied back. Under ``torch.compile`` the whole matching is one operator;
    ``torch.jit.trace`` records it for the numbers of targets that it sees.

    Args:
        cost_class: weight of the class cost.
        cost_bbox: weight of the L1 distance of the cxcywh boxes.
        cost_giou: weight of minus the generalised IoU.
        class_cost: ``"softmax"``, minus the softmax probability p of the target's label, or
            ``"focal"``, with p the label's sigmoid (Deformable DETR, Zhu et al. 2021)::

                -alpha * (1 - p)**gamma * log(p + eps) + (1 - alpha) * p**gamma * log(1 - p + eps)

            With ``"focal"`` the logits have K entries: none stands for "no object".
        focal_alpha, focal_gamma, focal_eps: parameters of the focal cost.
        giou_guard: how GIoU divides by an area x, either of the union or of the hull. ``"none"``:
            by x, where 0/0 counts as 0. ``"eps"``: by x + giou_eps. ``"clamp"``: by
            max(x, giou_eps).
        giou_eps: epsilon of ``giou_guard``.
        nonfinite: what to do if a pair has no finite cost (NaN or inf among the predictions, a
            predicted box of negative width or height, or an overflow): ``"raise"`` a ValueError, or
            match such pairs ``"last"``, that is as few of them as possible.
        index_device: ``"cpu"`` for indices on the CPU, as the published matcher returns them. For
            CUDA predictions this makes the host wait. Default: on the predictions' device.
        validate: when bad values in CUDA tensors are reported. ``"deferred"``: by a later
            call, once the GPU has reported them, or by :func:`detr_fast.check_faults`; the call
            itself gives the image's targets no match, and its lists pair query k with target k.
            ``"sync"``: at once, but the host waits. CPU tensors are always checked at once.
            What is left when the process ends is printed.
            Under ``torch.compile`` and while a CUDA graph is captured it is always deferred, and
            replays of a graph raise nothing: ``check_faults`` or a later call does.

    Raises:
        ValueError: if all weights are 0, one is not within +-1e28, or an option is invalid.
    """

    _checked: tuple[MatcherOptions, CostOptions] | None = None  # by _options

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
        index_device: str | torch.device | None = None,
        validate: str = "deferred",
    ) -> None:
        super().__init__()
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
        self._options()

    @property
    def uses_focal_cost(self) -> bool:
        """Whether the class cost is focal, so that the logits have no "no object"."""
        return self.class_cost == "focal"

    def extra_repr(self) -> str:
        """Name the weights, and the options that are not the default."""
        shown = [
            f"{name}={getattr(self, name)!r}"
            for name, option in inspect.signature(FastMatcher).parameters.items()
            if name.startswith("cost_") or getattr(self, name) != option.default
        ]
        return ", ".join(shown)

    def forward(self, outputs: Mapping[str, Tensor], targets: Targets) -> Pairs:
        """Match one decoder layer's predictions.

        Args:
            outputs: ``{"pred_logits": [B, N, K + 1], "pred_boxes": [B, N, 4] cxcywh}``, the logits
                [B, N, K] for the focal cost; other entries are ignored.
            targets: B dicts ``{"labels": [M] integers in 0..K-1, "boxes": [M, 4] cxcywh}``; other
                entries are ignored. M may be 0, and may exceed N. Or a ``PackedTargets``.

        Returns:
            For each image ``(index_i, index_j)``: int64 tensors of length min(N, M) with the
            matched queries, ascending, and the target of each. Of several assignments that cost the
            same, which is not specified. All of a call's tensors are views of one.

        Raises:
            ValueError: for a missing key, a wrong shape or dtype, B other than ``len(targets)``, a
                label outside 0..K-1, a target box that is not finite or has a negative side.
            PredictionError: a ValueError, unless ``nonfinite="last"``: for a prediction for which
                no cost exists (NaN, inf, a negative side).

            Messages name the place. Predictions of images without targets are not checked.
        """
        return self._match([outputs], targets)[0]

    def match_layers(self, layers: Sequence[Mapping[str, Tensor]], targets: Targets) -> list[Pairs]:
        """Match several decoder layers' predictions, each separately, in one compiled call.

        Args:
            layers: L dicts like ``outputs`` of :meth:`forward`, all of one shape, for example
                ``[outputs, *outputs["aux_outputs"]]``. Contiguous tensors are read in place.
            targets: as in :meth:`forward`.

        Returns:
            For each layer, what :meth:`forward` returns.

        Raises:
            ValueError: as :meth:`forward`, and for layers of differing shapes.
        """
        return self._match(layers, targets) if layers else []

    def match_packed(self, layers: Sequence[Mapping[str, Tensor]], targets: Targets) -> Matches:
        """Match like :meth:`match_layers`; the result, one tensor, needs no sizes from the host.

        Targets are packed in float32, also if the predictions are float64.

        Args:
            layers: as in :meth:`match_layers`, at least one.
            targets: as in :meth:`forward`, or ``PackedTargets`` of a fixed capacity, for CUDA
                graphs: on a GPU, and under ``torch.compile``, only this method accepts those.

        Returns:
            The query of each target, and the targets packed, on the predictions' device.

        Raises:
            ValueError: as :meth:`match_layers`, and if there is no layer.
        """
        if not layers:
            raise ValueError("layers is empty, expected at least one decoder layer")
        packed = targets if isinstance(targets, PackedTargets) else PackedTargets.pack(targets)
        if _reads_whole_tensors(layers):
            packed = packed.to(layers[0]["pred_logits"].device)
            query_index, _, _ = self._match_whole_tensors(layers, packed, pairs=False)
            return Matches(query_index, packed)
        query_index, _ = cpu.solve_packed(
            layers, packed.unpack(), len(packed.labels), self._options()
        )
        device = layers[0]["pred_logits"].device
        return Matches(query_index.to(device), packed.to(device))

    def _options(self) -> CostOptions:
        """Return the options for compiled code; checked again if one of them has been changed."""
        now = MatcherOptions(
            self.cost_class,
            self.cost_bbox,
            self.cost_giou,
            self.class_cost,
            self.focal_alpha,
            self.focal_gamma,
            self.focal_eps,
            self.giou_guard,
            self.giou_eps,
            self.nonfinite,
            self.index_device,
            self.validate,
        )
        if self._checked is None or self._checked[0] != now:
            self._checked = now, now.checked()
        return self._checked[1]

    def _indices_on_cpu(self) -> bool:
        return str(self.index_device) == "cpu"

    def _match(self, layers: Sequence[Mapping[str, Tensor]], targets: Targets) -> list[Pairs]:
        if _reads_whole_tensors(layers):
            if isinstance(targets, PackedTargets) and targets.counts is None:
                raise ValueError(
                    "targets were packed with a capacity, so the host does not know the lengths of "
                    "the lists: use match_packed"
                )
            _, index, placed = self._match_whole_tensors(layers, targets, pairs=True)
            n = layers[0]["pred_logits"].shape[1]
            sizes = [min(n, m) for m in placed.counts]
            if self._indices_on_cpu():
                index = index.cpu()  # waits, so that faults are known
                if not _is_traced():  # they are raised by the next call
                    faults.raise_pending(placed.labels.device, when="")
        else:
            if isinstance(targets, PackedTargets):
                targets = targets.unpack()
            index, sizes = cpu.solve(layers, targets, self._options())
            if not self._indices_on_cpu():
                index = index.to(layers[0]["pred_logits"].device)
        # For each layer and image the queries, then the targets. This split is "unsafe" only for
        # gradients, and a quarter faster.
        parts = index.unsafe_split_with_sizes(
            [size for size in sizes for _ in range(2)] * len(layers)
        )
        matches = list(zip(parts[::2], parts[1::2], strict=True))
        b = len(sizes)
        return [matches[k * b : (k + 1) * b] for k in range(len(layers))]

    def _match_whole_tensors(
        self, layers: Sequence[Mapping[str, Tensor]], targets: Targets, pairs: bool
    ) -> tuple[Tensor, Tensor, PlacedTargets]:  # from launch, and its targets
        logits, boxes = read_layers(layers)
        device = logits[0].device
        real = compute_dtype(boxes[0].dtype)
        placed = read_targets(targets, len(logits[0]), device, real)
        options = self._options()
        if _is_traced():
            query_index, index = traced.match(logits, boxes, placed, options, pairs)
        else:
            query_index, index = cuda.launch(logits, boxes, placed, options)
        if self.validate == "sync" and not cuda.is_deferred(device):
            faults.check_faults(device)
        return query_index, index, placed


def _is_traced() -> bool:
    """Return whether torch records this call, so that compiled code has to be an operator."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _reads_whole_tensors(layers: Sequence[Mapping[str, Tensor]]) -> bool:
    """Return whether targets are needed in one tensor: on a GPU, and where torch records."""
    if _is_traced():
        return True
    try:
        return has_kernels(layers[0]["pred_logits"])
    except (KeyError, IndexError, TypeError, AttributeError):
        return False  # the CPU path reports what is wrong
