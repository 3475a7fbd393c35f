"""What the drop-in matchers share: calling FastMatcher, costs that are not finite, query groups."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast import FastMatcher, linear_sum_assignment, reference
from detr_fast.matching import Pairs
from detr_fast.matching_input import check_layers, check_targets

Outputs = Mapping[str, Tensor]
Targets = Sequence[Mapping[str, Tensor]]
Fill = Callable[[list[Tensor]], list[Tensor]]  # all images' costs [N, M] -> the same, all finite


class Matcher(nn.Module):
    """A matcher whose attributes are another project's.

    They may be changed after construction, as in the original. As there, what is wrong with a call
    is raised by that call, and for CUDA predictions the host waits for their matching:
    :class:`detr_fast.FastMatcher` itself need not.

    Attributes:
        index_device: where the returned indices lie: the CPU, as the originals' do, unless set.
            On the predictions' device they index those without another transfer. (D-FINE's
            criterion reads each of them with ``.item()``: leave them on the CPU there.)
    """

    index_device: torch.device | str = "cpu"

    def _options(self) -> dict[str, Any]:
        """The arguments of FastMatcher."""
        raise NotImplementedError

    @torch.compiler.disable
    def _match(self, outputs: Outputs, targets: Targets) -> Pairs:
        return place(self, fast_matcher(self, self._options())(outputs, targets))

    def extra_repr(self) -> str:
        return fast_matcher(self, self._options()).extra_repr()


def fast_matcher(module: nn.Module, options: dict[str, Any]) -> FastMatcher:
    """The FastMatcher of these options, kept on the module until one of them changes.

    It reports faults at once, and leaves the indices of CUDA predictions where they are wanted.
    """
    options = {**options, **_on_cuda(module)}
    kept = module.__dict__.get("_detr_fast")
    if kept is None or kept[0] != options:
        kept = module.__dict__["_detr_fast"] = (options, FastMatcher(**options))
    return kept[1]


def _index_device(module: nn.Module) -> torch.device:
    return torch.device(getattr(module, "index_device", "cpu"))


def _on_cuda(module: nn.Module) -> dict[str, str]:
    on_cpu = _index_device(module).type == "cpu"
    return {"index_device": "cpu"} if on_cpu else {"validate": "sync"}


def place(module: nn.Module, pairs: Pairs) -> Pairs:
    """The pairs on the module's ``index_device``, by one transfer."""
    device = _index_device(module)
    if device.type == "cpu" or not pairs:
        return pairs  # FastMatcher was asked for them there
    flat = [index for pair in pairs for index in pair]
    parts = torch.cat(flat).to(device).split_with_sizes([len(index) for index in flat])
    return list(zip(parts[::2], parts[1::2], strict=True))


@torch.compiler.disable  # as an operator of torch.compile, FastMatcher's errors are not caught here
@torch.no_grad()
def match(
    module: nn.Module,
    options: dict[str, Any],
    outputs: Outputs,
    targets: Targets,
    fill: Fill | None = None,
    fill_nan_boxes: bool = False,
) -> Pairs:
    """FastMatcher's result, with two liberties that originals take.

    With the softmax cost the last logit may be a target's class too: some detectors have no "no
    object". And ``fill`` says what costs stand where a prediction has none.

    Args:
        module: the matcher whose FastMatcher it is.
        options: arguments of FastMatcher.
        outputs, targets: as for :meth:`FastMatcher.forward`.
        fill: makes all costs finite; None: a prediction without a cost is an error.
        fill_nan_boxes: whether ``fill`` is for predicted boxes of NaN too, and not only for logits
            and infinite boxes.

    Raises:
        ValueError: as FastMatcher, but for what is said above.
    """
    fast = fast_matcher(module, options)
    try:
        return fast(outputs, targets)
    except ValueError as error:
        fault = error
    check_layers([outputs], ["outputs"])
    check_targets(targets, len(outputs["pred_logits"]))
    logits = outputs["pred_logits"]
    if fast.class_cost == "softmax" and any(
        bool((target["labels"] == logits.shape[2] - 1).any()) for target in targets
    ):
        # One more class, of probability 0, is what FastMatcher takes for "no object".
        outputs = {**outputs, "pred_logits": nn.functional.pad(logits, (0, 1), value=-torch.inf)}
        try:
            return fast(outputs, targets)
        except ValueError as error:
            fault = error
    if fill is None:
        raise fault
    # Raises if targets are at fault.
    FastMatcher(**options, **_on_cuda(module), nonfinite="last")(outputs, targets)
    _check_boxes(outputs["pred_boxes"], fill_nan_boxes)
    blocks = cost_blocks(fast, outputs, targets)
    if all(bool(cost.isfinite().all()) for cost in blocks):
        raise fault  # of something else, such as another matcher's earlier call on this GPU
    return linear_sum_assignment(fill(blocks))


def _check_boxes(boxes: Tensor, nan_allowed: bool) -> None:
    wrong = (boxes[..., 2:] < 0).any(-1)
    if not nan_allowed:
        wrong |= boxes.isnan().any(-1)
    if wrong.any():
        b, n = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"outputs['pred_boxes'][{b}, {n}] is {boxes[b, n].tolist()}, but w, h must not be "
            f"negative{'' if nan_allowed else ', and nothing NaN'}"
        )


@torch.no_grad()
def cost_blocks(fast: FastMatcher, outputs: Outputs, targets: Targets) -> list[Tensor]:
    """Each image's costs [N, M] in plain torch on the CPU; not finite where a prediction is not.

    Labels and targets must have been checked.
    """
    options = {name: getattr(fast, name) for name in reference.COST_OPTIONS}
    weights = (fast.cost_class, fast.cost_bbox, fast.cost_giou)
    logits, boxes = outputs["pred_logits"].cpu(), outputs["pred_boxes"].cpu()
    real = torch.float64 if torch.float64 in (logits.dtype, boxes.dtype) else torch.float32
    return [
        reference.matching_cost(
            logits[b].to(real),
            boxes[b].to(real),
            target["labels"].cpu().long(),
            target["boxes"].cpu().to(real).reshape(-1, 4),
            *weights,
            **options,
        )
        for b, target in enumerate(targets)
    ]


def fill_last(blocks: list[Tensor]) -> list[Tensor]:
    """So large that as few such pairs as possible are matched, and no larger than that needs."""
    filled = []
    for cost in blocks:
        finite = cost.isfinite()
        known = cost[finite].double()
        last = 0.0
        if len(known):
            last = float(known.max() + (known.max() - known.min() + 1) * (cost.shape[1] + 1))
        filled.append(cost.double().masked_fill(~finite, last))
    return filled


def match_groups(
    module: nn.Module,
    options: dict[str, Any],
    outputs: Outputs,
    targets: Targets,
    groups: int,
    fill: Fill,
    fill_nan_boxes: bool = False,
) -> Pairs:
    """Matches each of G equal groups of consecutive queries on its own, all in one call.

    An image's pairs are those of its groups one after the other; queries left over by the division
    are not matched.
    """
    if groups == 1:
        return match(module, options, outputs, targets, fill, fill_nan_boxes)
    if groups < 1:
        raise ValueError(f"group_detr is {groups}, but must be positive")
    check_layers([outputs], ["outputs"])
    check_targets(targets, len(outputs["pred_logits"]))
    size = outputs["pred_logits"].shape[1] // groups
    # To FastMatcher each group is an image of its own: a view, for contiguous predictions that
    # leave nothing over.
    as_images = {
        key: outputs[key][:, : size * groups].reshape(-1, size, outputs[key].shape[-1])
        for key in ("pred_logits", "pred_boxes")
    }
    repeated = [target for target in targets for _ in range(groups)]
    try:
        pairs = match(module, options, as_images, repeated, fill, fill_nan_boxes)
    except ValueError as error:
        raise ValueError(_ungrouped(str(error), groups, size)) from None
    joined = []
    for start in range(0, len(pairs), groups):
        queries, matched = zip(*pairs[start : start + groups], strict=True)
        first = torch.arange(groups, device=queries[0].device)[:, None] * size
        joined.append(((torch.stack(queries) + first).flatten(), torch.cat(matched)))
    return joined


def _ungrouped(message: str, groups: int, size: int) -> str:
    """The places that an error names, in the caller's numbers of images and queries."""

    def query(found: re.Match) -> str:
        b, n = int(found[2]), int(found[3])
        return f"{found[1]}[{b // groups}, {b % groups * size + n}]"

    message = re.sub(r"(outputs\['\w+'\])\[(\d+), (\d+)\]", query, message)
    return re.sub(
        r"(outputs\['\w+'\]|targets)\[(\d+)\](?=\[| to)",
        lambda found: f"{found[1]}[{int(found[2]) // groups}]",
        message,
    )
