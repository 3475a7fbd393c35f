"""Code that the drop-in matchers share: FastMatcher calls, non-finite costs, query groups."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from detr_fast import FastMatcher, PredictionError, linear_sum_assignment, reference
from detr_fast.matching import Pairs
from detr_fast.matching.input import check_layers, check_targets

Outputs = Mapping[str, Tensor]
Targets = Sequence[Mapping[str, Tensor]]
# All images' costs [N, M] -> the same, all finite; or "last": as FastMatcher(nonfinite="last").
Fill = Callable[[list[Tensor]], list[Tensor]] | Literal["last"]


class Matcher(nn.Module):
    """A matcher with the same attributes as another project's.

    They may be changed after construction, as in the original. As there, an error is raised by the
    call that causes it, and for CUDA predictions the host waits for the matching, which
    :class:`detr_fast.FastMatcher` itself can avoid.

    Attributes:
        index_device: where the returned indices are: on the CPU, as in the originals, unless set.
            On the predictions' device they index those without another transfer. (D-FINE's
            criterion reads each of them with ``.item()``: leave them on the CPU there.)
    """

    index_device: torch.device | str = "cpu"

    @property
    def uses_focal_cost(self) -> bool:
        """Whether the class cost is focal, so that the logits have no "no object"."""
        return self._options().get("class_cost") == "focal"

    def _options(self) -> dict[str, Any]:
        """Return the arguments of FastMatcher."""
        raise NotImplementedError

    @torch.compiler.disable
    def _match(self, outputs: Outputs, targets: Targets) -> Pairs:
        return place(self, fast_matcher(self, self._options())(outputs, targets))

    def extra_repr(self) -> str:
        return fast_matcher(self, self._options()).extra_repr()


def fast_matcher(module: nn.Module, options: dict[str, Any]) -> FastMatcher:
    """Return the FastMatcher of these options, cached on the module until one of them changes.

    It reports faults at once, and returns indices on the CPU if ``index_device`` is the CPU.
    """
    options = {**options, **_on_cuda(module)}
    cached = module.__dict__.get("_detr_fast")
    if cached is None or cached[0] != options:
        cached = module.__dict__["_detr_fast"] = (options, FastMatcher(**options))
    return cached[1]


def _index_device(module: nn.Module) -> torch.device:
    return torch.device(getattr(module, "index_device", "cpu"))


def _on_cuda(module: nn.Module) -> dict[str, str]:
    on_cpu = _index_device(module).type == "cpu"
    return {"index_device": "cpu"} if on_cpu else {"validate": "sync"}


def place(module: nn.Module, pairs: Pairs) -> Pairs:
    """Return the pairs on the module's ``index_device``, by one transfer."""
    device = _index_device(module)
    if device.type == "cpu" or not pairs:
        return pairs  # FastMatcher has put them there
    flat = [index for pair in pairs for index in pair]
    parts = torch.cat(flat).to(device).split_with_sizes([len(index) for index in flat])
    return list(zip(parts[::2], parts[1::2], strict=True))


@torch.compiler.disable  # in a compiled FastMatcher, errors could not be caught here
@torch.no_grad()
def match(
    module: nn.Module,
    options: dict[str, Any],
    outputs: Outputs,
    targets: Targets,
    fill: Fill | None = None,
    fill_nan_boxes: bool = False,
) -> Pairs:
    """Return FastMatcher's result, with two exceptions that originals make.

    With the softmax cost the last logit may also be a target's class: some detectors have no "no
    object". And ``fill`` gives costs to predictions that have none.

    Args:
        module: the matcher that caches the FastMatcher.
        options: arguments of FastMatcher.
        outputs, targets: as for :meth:`FastMatcher.forward`.
        fill: makes all costs finite; None: a prediction without a cost is an error.
        fill_nan_boxes: whether ``fill`` also applies to predicted boxes of NaN, and not only to
            logits and infinite boxes.

    Raises:
        ValueError: as FastMatcher, except as described above.
    """
    fast = fast_matcher(module, options)
    fault = None
    try:
        try:
            return fast(outputs, targets)
        except ValueError as error:
            fault = error
        check_layers([outputs])
        check_targets(targets, len(outputs["pred_logits"]))
        logits = outputs["pred_logits"]
        if fast.class_cost == "softmax" and any(
            bool((target["labels"] >= logits.shape[2] - 1).any()) for target in targets
        ):
            # FastMatcher takes one more class, of probability 0, as "no object".
            padded = nn.functional.pad(logits, (0, 1), value=-torch.inf)
            outputs = {**outputs, "pred_logits": padded}
            try:
                return fast(outputs, targets)
            except ValueError as error:
                fault = error
        if fill is None:
            raise fault
        lenient = FastMatcher(**options, **_on_cuda(module), nonfinite="last")
        pairs = lenient(outputs, targets)  # raises if targets are at fault
        _check_boxes(outputs["pred_boxes"], fill_nan_boxes)
        blocks = cost_blocks(fast, outputs, targets)
        if all(bool(cost.isfinite().all()) for cost in blocks):
            raise fault  # about something else, such as another matcher's earlier call on this GPU
        return pairs if fill == "last" else linear_sum_assignment(fill(blocks))
    finally:
        del fault  # its traceback refers to this frame: predictions would live until collected


def _check_boxes(boxes: Tensor, nan_allowed: bool) -> None:
    wrong = (boxes[..., 2:] < 0).any(-1)
    if not nan_allowed:  # also where only a corner is NaN, of a box with several infinities
        wrong |= box_convert(boxes, "cxcywh", "xyxy").isnan().any(-1)
    if wrong.any():
        b, n = wrong.nonzero()[0].tolist()
        raise PredictionError(
            f"outputs['pred_boxes'][{b}, {n}] is {boxes[b, n].tolist()}, but w, h must not be "
            f"negative{'' if nan_allowed else ', and no entry NaN'}"
        )


@torch.no_grad()
def cost_blocks(fast: FastMatcher, outputs: Outputs, targets: Targets) -> list[Tensor]:
    """Return each image's costs [N, M] in plain torch on the CPU; not finite where predictions are
    not. Labels and targets must have been checked.
    """
    arguments = reference.cost_arguments(fast)
    logits, boxes = outputs["pred_logits"].cpu(), outputs["pred_boxes"].cpu()
    real = torch.float64 if torch.float64 in (logits.dtype, boxes.dtype) else torch.float32
    return [
        reference.matching_cost(
            logits[b].to(real),
            boxes[b].to(real),
            target["labels"].cpu().long(),
            target["boxes"].cpu().to(real).reshape(-1, 4),
            **arguments,
        )
        for b, target in enumerate(targets)
    ]


def match_groups(
    module: nn.Module,
    options: dict[str, Any],
    outputs: Outputs,
    targets: Targets,
    groups: int,
    fill: Fill,
    fill_nan_boxes: bool = False,
) -> Pairs:
    """Match each of G equal groups of consecutive queries separately, all in one call.

    An image's pairs are those of its groups one after the other; queries left over by the division
    are not matched.
    """
    if groups == 1:
        return match(module, options, outputs, targets, fill, fill_nan_boxes)
    if groups < 1:
        raise ValueError(f"group_detr is {groups}, but must be positive")
    check_layers([outputs])
    check_targets(targets, len(outputs["pred_logits"]))
    queries = outputs["pred_logits"].shape[1]
    if groups > queries:
        raise ValueError(f"group_detr is {groups}, but there are only {queries} queries")
    size = queries // groups
    # To FastMatcher each group is a separate image: a view, if predictions are contiguous and no
    # query is left over.
    as_images = {
        key: outputs[key][:, : size * groups].reshape(-1, size, outputs[key].shape[-1])
        for key in ("pred_logits", "pred_boxes")
    }
    repeated = [target for target in targets for _ in range(groups)]
    try:
        pairs = match(module, options, as_images, repeated, fill, fill_nan_boxes)
    except ValueError as error:
        raise type(error)(_ungrouped(str(error), groups, size)) from None
    joined = []
    for start in range(0, len(pairs), groups):
        queries, matched = zip(*pairs[start : start + groups], strict=True)
        first = torch.arange(groups, device=queries[0].device)[:, None] * size
        joined.append(((torch.stack(queries) + first).flatten(), torch.cat(matched)))
    return joined


def _ungrouped(message: str, groups: int, size: int) -> str:
    """Return the error message with places in the caller's numbers of images and queries."""

    def query(hit: re.Match) -> str:
        b, n = int(hit[2]), int(hit[3])
        return f"{hit[1]}[{b // groups}, {b % groups * size + n}]"

    message = re.sub(r"(outputs\['\w+'\])\[(\d+), (\d+)\]", query, message)
    return re.sub(
        r"(outputs\['\w+'\]|targets)\[(\d+)\](?=\[| to)",
        lambda hit: f"{hit[1]}[{int(hit[2]) // groups}]",
        message,
    )
