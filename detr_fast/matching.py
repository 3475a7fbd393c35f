"""The matching of DETR: which query answers for which target.

Carion et al., "End-to-End Object Detection with Transformers" (2020), section 3.1: among all
one-to-one pairings of an image's queries and targets, the one of least total cost

    cost = -cost_class * p(label) + cost_bbox * |box - box'|_1 - cost_giou * GIoU(box, box')

Letters: B images, N queries, K classes (without "no object"), M targets of one image, T of all.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from detr_fast import _C

Pairs = list[tuple[Tensor, Tensor]]  # one (query indices, target indices) per image


class FastMatcher(nn.Module):
    """Optimal one-to-one matching of predictions and targets, by compiled code.

    A drop-in for the published ``HungarianMatcher``: same arguments, same result. Each image's own
    N x M costs are computed, never the whole batch's, and all images and all decoder layers are
    matched in one call of compiled code that releases the GIL. No gradient flows through it.

    Costs are computed in float32 (in float64 if a prediction is float64; half-precision predictions
    are converted to float32 first, so near-ties may fall differently than in half-precision
    arithmetic) and the assignment is solved in float64. Tensors on another device are copied to the
    CPU in one transfer per call.

    Args:
        cost_class: weight of minus the softmax probability of the target's label.
        cost_bbox: weight of the L1 distance of the cxcywh boxes.
        cost_giou: weight of minus the generalised IoU. Two boxes of zero area have IoU 0.

    Raises:
        ValueError: if all weights are 0, or one is not finite.
    """

    def __init__(self, cost_class: float = 1, cost_bbox: float = 5, cost_giou: float = 2) -> None:
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
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou

    def extra_repr(self) -> str:
        return (
            f"cost_class={self.cost_class}, cost_bbox={self.cost_bbox}, cost_giou={self.cost_giou}"
        )

    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> Pairs:
        """Matches one decoder layer's predictions.

        Args:
            outputs: ``{"pred_logits": [B, N, K + 1], "pred_boxes": [B, N, 4] cxcywh}``; other
                entries are ignored.
            targets: B dicts ``{"labels": [M] integers in 0..K-1, "boxes": [M, 4] cxcywh}``; other
                entries are ignored. M may be 0, and may exceed N.

        Returns:
            For each image ``(index_i, index_j)``: int64 CPU tensors of length min(N, M) with the
            matched queries, ascending, and the target of each.

        Raises:
            ValueError: for a missing key, a wrong shape or dtype, B other than ``len(targets)``, a
                label outside 0..K-1, a target box that is not finite or has a negative side, and a
                prediction for which no cost exists (NaN, inf, a negative side). The message names
                the place. Predictions of images without targets are not looked at.
        """
        return self._match([outputs], ["outputs"], targets)[0]

    def match_layers(
        self, layers: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[Pairs]:
        """Matches several decoder layers' predictions, each on its own, in one compiled call.

        Args:
            layers: L dicts like ``outputs`` of :meth:`forward`, all of one shape, for example
                ``[outputs, *outputs["aux_outputs"]]``. Contiguous float32 or float64 CPU tensors
                are read in place.
            targets: as in :meth:`forward`.

        Returns:
            For each layer, what :meth:`forward` returns.

        Raises:
            ValueError: as :meth:`forward`, and for layers of differing shapes.
        """
        return self._match(layers, [f"layers[{k}]" for k in range(len(layers))], targets)

    @torch.no_grad()
    def _match(
        self,
        layers: Sequence[Mapping[str, Tensor]],
        names: Sequence[str],  # what to call each layer in an error
        targets: Sequence[Mapping[str, Tensor]],
    ) -> list[Pairs]:
        if not layers:
            return []
        logits, boxes = _check_layers(layers, names)
        b, n, c = logits[0].shape
        sizes = _check_targets(targets, b)

        double = any(t.dtype == torch.float64 for t in (*logits, *boxes))
        real = torch.float64 if double else torch.float32
        packed = _to_cpu(
            [
                _cat([t["labels"] for t in targets], (0,), torch.int64),
                _cat([t["boxes"] for t in targets], (0, 4), real),
                *(t.detach().to(real).contiguous() for t in (*logits, *boxes)),
            ]
        )
        labels, target_boxes = packed[0], packed[1]
        logits, boxes = packed[2 : 2 + len(layers)], packed[2 + len(layers) :]
        offsets = torch.tensor([0, *accumulate(sizes)], device="cpu")
        _check_values(labels, target_boxes, sizes, c - 1)

        pairs = [min(n, m) for m in sizes]
        query_index = torch.empty(len(layers), sum(pairs), dtype=torch.int64, device="cpu")
        target_index = torch.empty_like(query_index)
        fault = _C.match(
            logits=[t.data_ptr() for t in logits],
            boxes=[t.data_ptr() for t in boxes],
            shape=(b, n, c),
            is_double=double,
            labels=labels.data_ptr(),
            target_boxes=target_boxes.data_ptr(),
            offsets=offsets.data_ptr(),
            weights=(self.cost_class, self.cost_bbox, self.cost_giou),
            query_index=query_index.data_ptr(),
            target_index=target_index.data_ptr(),
        )
        if fault[0] != _C.Status.ok:
            _raise_fault(fault, names, logits, boxes)
        return [
            list(zip(i.split_with_sizes(pairs), j.split_with_sizes(pairs), strict=True))
            for i, j in zip(query_index, target_index, strict=True)
        ]


def _check_layers(
    layers: Sequence[Mapping[str, Tensor]], names: Sequence[str]
) -> tuple[list[Tensor], list[Tensor]]:
    for layer, name in zip(layers, names, strict=True):
        for key in ("pred_logits", "pred_boxes"):
            if key not in layer:
                raise ValueError(f"{name} has no {key!r}")
            _check_tensor(layer[key], f"{name}[{key!r}]")
            if not layer[key].is_floating_point():
                raise ValueError(
                    f"{name}[{key!r}] is {layer[key].dtype}, but must be floating point"
                )
        logits, boxes = layer["pred_logits"], layer["pred_boxes"]
        if logits.dim() != 3:
            raise ValueError(
                f"{name}['pred_logits'] has shape {list(logits.shape)}, but must be [B, N, K + 1]"
            )
        if boxes.shape != (*logits.shape[:2], 4):
            raise ValueError(
                f"{name}['pred_boxes'] has shape {list(boxes.shape)}, but 'pred_logits' of shape "
                f"{list(logits.shape)} needs {[*logits.shape[:2], 4]}"
            )
        first = layers[0]["pred_logits"]
        if logits.shape != first.shape:
            raise ValueError(
                f"{name}['pred_logits'] has shape {list(logits.shape)}, but "
                f"{names[0]}['pred_logits'] has {list(first.shape)}"
            )
    return [layer["pred_logits"] for layer in layers], [layer["pred_boxes"] for layer in layers]


def _check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(value).__name__}")


def _check_targets(targets: Sequence[Mapping[str, Tensor]], images: int) -> list[int]:
    """Checks keys and shapes; returns the number of targets of each image."""
    if len(targets) != images:
        raise ValueError(f"predictions for {images} images, but {len(targets)} targets")
    for b, target in enumerate(targets):
        for key in ("labels", "boxes"):
            if key not in target:
                raise ValueError(f"targets[{b}] has no {key!r}")
            _check_tensor(target[key], f"targets[{b}][{key!r}]")
        labels, boxes = target["labels"], target["boxes"]
        if labels.dim() != 1:
            raise ValueError(
                f"targets[{b}]['labels'] has shape {list(labels.shape)}, but must be [M]"
            )
        # torch.tensor([]) has shape [0] and dtype float32: a common way to say "no target".
        empty = labels.numel() == 0 and boxes.numel() == 0
        if boxes.shape != (len(labels), 4) and not empty:
            raise ValueError(
                f"targets[{b}]['boxes'] has shape {list(boxes.shape)}, but {len(labels)} labels "
                f"need [{len(labels)}, 4]"
            )
        if labels.is_floating_point() and not empty:
            raise ValueError(
                f"targets[{b}]['labels'] is {labels.dtype}, but labels must be integers"
            )
    return [len(target["labels"]) for target in targets]


def _check_values(labels: Tensor, boxes: Tensor, sizes: Sequence[int], classes: int) -> None:
    """Checks packed labels [T] and boxes [T, 4]; an error counts within the image."""

    def first(bad: np.ndarray) -> tuple[int, int, int]:  # target overall, image, target within it
        t = m = int(bad.argmax())
        b = 0
        while m >= sizes[b]:
            m -= sizes[b]
            b += 1
        return t, b, m

    # NumPy, because a call of it on a few numbers takes a quarter of torch's time.
    label, box = labels.numpy(), boxes.numpy()
    bad = (label < 0) | (label >= classes)
    if bad.any():
        t, b, m = first(bad)
        raise ValueError(
            f"targets[{b}]['labels'][{m}] is {label[t]}, but logits have {classes} classes "
            f"(0..{classes - 1})"
        )
    bad = ~np.isfinite(box).all(1) | (box[:, 2:] < 0).any(1)
    if bad.any():
        t, b, m = first(bad)
        raise ValueError(
            f"targets[{b}]['boxes'][{m}] is {box[t].tolist()}, but cx, cy, w, h must be finite and "
            "w, h not negative"
        )


def _raise_fault(
    fault: tuple, names: Sequence[str], logits: Sequence[Tensor], boxes: Sequence[Tensor]
) -> None:
    status, problem, n, m = fault
    layer, b = divmod(problem, len(logits[0]))
    name = names[layer]
    if status == _C.Status.invalid_logits:
        raise ValueError(
            f"{name}['pred_logits'][{b}, {n}] has no softmax: it holds NaN, inf or only -inf"
        )
    if status == _C.Status.invalid_box:
        raise ValueError(
            f"{name}['pred_boxes'][{b}, {n}] is {boxes[layer][b, n].tolist()}, but cx, cy, w, h "
            "must be finite and w, h not negative"
        )
    raise ValueError(
        f"the cost of matching {name}['pred_boxes'][{b}] to targets[{b}]['boxes'][{m}] overflows"
    )


def _cat(parts: Sequence[Tensor], empty_shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Concatenates the images' parts, those without an element left out whatever their shape."""
    parts = [part.detach().to(dtype) for part in parts if part.numel()]
    return torch.cat(parts) if parts else torch.empty(empty_shape, dtype=dtype, device="cpu")


def _to_cpu(tensors: list[Tensor]) -> list[Tensor]:
    """The contiguous tensors on the CPU: those already there untouched, all others by one transfer.

    int64 and float64 tensors must precede narrower ones, to stay aligned in the packed buffer.
    """
    away = [k for k, t in enumerate(tensors) if t.device.type != "cpu"]
    result = list(tensors)
    if away:
        device = tensors[away[0]].device
        for k, copy in zip(
            away, _pack_and_copy([tensors[k].to(device) for k in away]), strict=True
        ):
            result[k] = copy
    return result


def _pack_and_copy(tensors: list[Tensor]) -> list[Tensor]:
    packed = torch.cat([t.flatten().view(torch.uint8) for t in tensors]).cpu()
    parts = packed.split_with_sizes([t.numel() * t.element_size() for t in tensors])
    return [part.view(t.dtype).view(t.shape) for part, t in zip(parts, tensors, strict=True)]
