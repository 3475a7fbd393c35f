"""The set prediction loss: match, then compare the matched pairs (paper, section 3.1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detr_fast import processes
from detr_fast.matching import FastMatcher, Matches, PackedTargets, Targets
from detr_fast.ops import box_losses, target_classes
from detr_fast.ops.matched import BOX_LOSSES

# A centre or side above it is in pixels: no crop or zoom takes a box that far out of its image.
_MOST_NORMALISED = 10.0


class SetCriterion(nn.Module):
    """Class, L1 and GIoU loss over optimally matched queries, summed over decoder layers.

    Each decoder layer gets its own matching, all of them from one call of the matcher if it can,
    and its three losses are added with the same weights (paper, "auxiliary decoding losses"). With
    the default ``FastMatcher`` nothing here makes the host wait for a GPU.

    Args:
        num_classes: K, without "no object", which is class K.
        matcher: a ``FastMatcher`` with the softmax cost, or any module that is called like one. It
            must match each target to at most one query and each query to at most one target, since
            a query has one class. Default: FastMatcher().
        eos_coef: weight of "no object" in the cross-entropy.
        weight_class, weight_bbox, weight_giou: weights of the three losses in the total.
        box_loss: ``"l1"`` (the paper) or ``"smooth_l1"``.

    Raises:
        ValueError: an unknown ``box_loss``, ``num_classes`` below one, ``eos_coef`` or a weight
            that is negative or not finite, or a matcher with the focal cost.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module | None = None,
        *,
        eos_coef: float = 0.1,
        weight_class: float = 1.0,
        weight_bbox: float = 5.0,
        weight_giou: float = 2.0,
        box_loss: str = "l1",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        for name, weight in (
            ("eos_coef", eos_coef),
            ("weight_class", weight_class),
            ("weight_bbox", weight_bbox),
            ("weight_giou", weight_giou),
        ):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} is {weight}, expected a finite weight of 0 or more")
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss is {box_loss!r}, expected one of {', '.join(BOX_LOSSES)}")
        self.num_classes = num_classes
        self.matcher = FastMatcher() if matcher is None else matcher
        self._check_matcher()
        self.weights = {
            "loss_ce": weight_class,
            "loss_bbox": weight_bbox,
            "loss_giou": weight_giou,
        }
        self.box_loss = box_loss
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = eos_coef
        self.register_buffer("class_weights", class_weights)

    def forward(
        self,
        outputs: dict,  # as DETR returns them, with or without aux_outputs
        # B times {"labels" [M], "boxes" [M, 4] cxcywh}; or packed, for a FastMatcher
        targets: Targets,
        step_counts: Tensor | None = None,
        batches: int = 1,
    ) -> dict[str, Tensor]:
        """Return the losses of a batch.

        Args:
            step_counts: the number of targets of every image of a step that consists of several
                batches, whose losses are then divided by the step's means instead of their own: the
                mean of their gradients is the gradient of all images in one batch.
            batches: how many these are; 1 without ``step_counts``.

        Returns:
            float32 scalars. ``loss``, the weighted total to differentiate. Without gradient: the
            unweighted parts ``loss_ce``, ``loss_bbox``, ``loss_giou`` of the last decoder layer,
            and the same with ``_0``, ``_1``, ... of the earlier ones; ``class_error`` (percent of
            the last layer's matched queries whose best class is wrong); ``cardinality_error`` (mean
            over images of | number of non-empty predictions - number of targets |);
            ``no_object_matched`` and ``no_object_unmatched`` (mean probability of "no object" of
            the last layer's queries with and without a target); and, numbered like the losses,
            ``rematched_0``, ``rematched_1``, ... of all layers but the last (share of the targets
            that get another query in the next layer). A mean over nothing is 0.

        Raises:
            ValueError: bad outputs or targets that the matcher finds, with their place; a list of
                targets on the CPU with boxes in pixels; a matcher's lists with a query or target
                that occurs twice or does not exist; logits that do not have K + 1 classes; no
                image; or several batches without ``step_counts``.
        """
        if batches < 1 or (batches > 1 and step_counts is None):
            raise ValueError(f"batches is {batches}, which needs step_counts; and at least 1")
        logits, matches, classes, (ce, l1, giou) = self._compare(outputs, targets)
        offsets = matches.targets.offsets
        total = offsets[-1] if step_counts is None else step_counts.sum()
        num_boxes = processes.mean(total.float()).clamp(min=1)
        if batches > 1:
            num_boxes = num_boxes / batches
        weight = self._class_weight(classes, step_counts, batches)
        # The weights sum to 0 without queries, or without objects if eos_coef is 0.
        weight = weight.clamp(min=torch.finfo(weight.dtype).tiny)
        losses = self.total_and_parts(ce / weight, l1 / num_boxes, giou / num_boxes)
        losses |= _diagnostics(logits[-1], classes[-1], offsets)
        losses |= _instability(matches.query_index, offsets)
        return losses

    @torch.no_grad()
    def sums(self, outputs: dict, targets: Targets) -> tuple[Tensor, Tensor, Matches]:
        """Return a batch's class, L1 and GIoU losses before their division, and their divisors.

        Both are [3, L], and followed by the matches. The quotients of the two, each summed over
        batches first, are the losses of all images in one batch; :meth:`total_and_parts` names
        them. Processes exchange nothing here, so they may have different numbers of batches.

        Args, Raises: as in :meth:`forward`.
        """
        _, matches, classes, losses = self._compare(outputs, targets)
        weight = self._class_weight(classes)
        num_boxes = matches.targets.offsets[-1].float().expand_as(weight)
        return torch.stack(losses), torch.stack([weight, num_boxes, num_boxes]), matches

    def total_and_parts(
        self,
        loss_ce: Tensor,  # [L] each
        loss_bbox: Tensor,
        loss_giou: Tensor,
    ) -> dict[str, Tensor]:
        """Return the weighted total and all parts, by the names that :meth:`forward` gives them."""
        parts = {"loss_ce": loss_ce, "loss_bbox": loss_bbox, "loss_giou": loss_giou}
        losses = {"loss": sum(self.weights[name] * part.sum() for name, part in parts.items())}
        for name, part in parts.items():
            losses[name] = part[-1].detach()
            losses |= {f"{name}_{i}": part[i].detach() for i in range(len(part) - 1)}
        return losses

    def _compare(
        self, outputs: dict, targets: Targets
    ) -> tuple[Tensor, Matches, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Match; return logits, matches, the queries' classes, and sums of the three losses [L]."""
        layers = [*outputs.get("aux_outputs", ()), outputs]
        if "pred_logits" not in outputs:
            raise ValueError("outputs has no 'pred_logits'")
        if outputs["pred_logits"].shape[-1] != self.num_classes + 1:
            raise ValueError(
                f"pred_logits has {outputs['pred_logits'].shape[-1]} classes, expected "
                f"{self.num_classes} and one for 'no object'"
            )
        self._check_matcher()  # whose options may have been changed
        if not len(targets):
            raise ValueError("targets is empty, expected at least one image")
        matches = self._match(layers, targets)
        packed = matches.targets
        logits = torch.stack([layer["pred_logits"] for layer in layers]).float()  # [L, B, N, K+1]
        boxes = torch.stack([layer["pred_boxes"] for layer in layers])  # [L, B, N, 4]
        if boxes.dtype == torch.float64:
            boxes = boxes.float()  # half precision is widened as it is read
        classes = target_classes(
            matches.query_index, packed.labels, packed.offsets, logits.shape[2], self.num_classes
        )  # [L, B, N]
        weights = self.class_weights.float()  # a module around this may have been cast
        ce = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weights, reduction="none")
        l1, giou = box_losses(
            boxes, packed.boxes, matches.query_index, packed.offsets, self.box_loss
        )
        return logits, matches, classes, (ce.view(len(layers), -1).sum(1), l1, giou)

    def _check_matcher(self) -> None:
        if getattr(self.matcher, "uses_focal_cost", False):
            raise ValueError(
                "the matcher has the focal class cost, which has no class 'no object'; the "
                "cross-entropy of this loss has one, so the matcher needs the softmax cost"
            )

    def _match(self, layers: list[dict], targets: Targets) -> Matches:
        if isinstance(self.matcher, FastMatcher) and (
            type(self.matcher).forward is FastMatcher.forward  # else a subclass's own result counts
        ):
            if isinstance(targets, PackedTargets):  # as the loader makes them: nothing to look at
                return self.matcher.match_packed(layers, targets)
            packed = PackedTargets.pack(targets)
            matches = self.matcher.match_packed(layers, packed)
            _check_normalised(packed)
            return matches
        if isinstance(targets, PackedTargets):
            targets = targets.unpack()
        pairs = [self.matcher(layer, targets) for layer in layers]
        logits = layers[0]["pred_logits"]
        return _pack_matches(pairs, targets, logits.shape[1], logits.device)

    def _class_weight(
        self,
        classes: Tensor,  # [L, B, N]
        step_counts: Tensor | None = None,
        batches: int = 1,
    ) -> Tensor:  # [L], or a scalar for all layers with step_counts
        """Return the sum of the queries' class weights, ``eos_coef`` for "no object"."""
        weights = self.class_weights.float()
        if step_counts is None:
            return weights[classes].flatten(1).sum(1)
        # The other batches are not matched yet, but each target will get a query if it can.
        queries = classes.shape[2]
        matched = step_counts.clamp(max=queries)
        return (matched + weights[-1] * (queries - matched)).sum() / batches


def _pack_matches(
    matches: list[list[tuple[Tensor, Tensor]]],  # L, B times (query indices, target indices)
    targets: Sequence[dict[str, Tensor]],
    num_queries: int,
    device: torch.device,
) -> Matches:
    """Convert the lists that published matchers return to what ``match_packed`` returns.

    Raises:
        ValueError: lists that are not a matching, or boxes in pixels; names the place.
    """
    for layer, images in enumerate(matches):
        if not isinstance(images, Sequence):
            raise ValueError(
                f"layer {layer}: the matcher returned a {type(images).__name__}, expected a list "
                "of one (query indices, target indices) per image"
            )
        if len(images) != len(targets):
            raise ValueError(
                f"layer {layer}: the matcher returned matches for {len(images)} images, but there "
                f"are {len(targets)}"
            )
        for image, (query, target) in enumerate(images):
            if len(query) != len(target):
                raise ValueError(
                    f"layer {layer}, image {image}: the matcher returned {len(query)} queries, but "
                    f"{len(target)} targets"
                )
    # One transfer to the CPU, however many layers and images.
    pairs = [pair for images in matches for pair in images]
    sizes = [len(query) for query, _ in pairs]
    query, target = torch.stack(
        [torch.cat(column).long() for column in zip(*pairs, strict=True)]
    ).cpu()
    counts = torch.tensor([len(image["labels"]) for image in targets], device="cpu")
    # For each pair: layer * B + image.
    place = torch.repeat_interleave(torch.tensor(sizes, device="cpu"))
    layer, image = place // len(targets), place % len(targets)

    def refuse(wrong: Tensor, what: str) -> None:
        if wrong.any():
            i = int(wrong.nonzero()[0])
            fault = what.format(query=query[i], target=target[i], count=counts[image[i]])
            raise ValueError(f"layer {layer[i]}, image {image[i]}: the matcher assigned {fault}")

    refuse(
        (query < 0) | (query >= num_queries) | (target < 0) | (target >= counts[image]),
        f"query {{query}} to target {{target}}, but there are {num_queries} queries and {{count}} "
        "targets",
    )
    ends = counts.cumsum(0)
    row = layer * ends[-1] + (ends - counts)[image] + target
    refuse(row.bincount()[row] > 1, "several queries to target {target}")
    column = place * num_queries + query
    refuse(column.bincount()[column] > 1, "query {query} to several targets")
    query_index = torch.full((len(matches), int(ends[-1])), -1, device="cpu")
    query_index.view(-1)[row] = query
    packed = PackedTargets.pack(targets)
    _check_normalised(packed)
    return Matches(query_index.to(device), packed.to(device))


def _check_normalised(targets: PackedTargets) -> None:
    """Raise ValueError for boxes in pixels: a loss in the thousands, and nothing is learned.

    Only of targets on the CPU, where reading is no wait, and not where torch records.
    """
    boxes = targets.boxes
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if not boxes.is_cpu or not boxes.numel() or boxes.max().item() <= _MOST_NORMALISED:
        return
    for b, image in enumerate(targets.unpack()):
        for t in (image["boxes"] > _MOST_NORMALISED).any(1).nonzero().flatten().tolist():
            raise ValueError(
                f"targets[{b}]['boxes'][{t}] is {image['boxes'][t].tolist()}, but boxes must be "
                "cxcywh in 0..1 of the image: divide them by its width and height"
            )


@torch.no_grad()
def _diagnostics(
    logits: Tensor,  # [B, N, K+1]
    classes: Tensor,  # [B, N]
    offsets: Tensor,  # [B + 1]
) -> dict[str, Tensor]:
    """Return statistics of the last layer's classes, for logs only."""
    best, no_object = logits.argmax(-1), logits.shape[-1] - 1
    matched = classes != no_object
    wrong = (matched & (best != classes)).sum()
    detected = (best != no_object).sum(1)
    count = matched.sum()
    empty = logits.softmax(-1)[..., -1]
    of_matched = (empty * matched).sum()
    return {
        "class_error": 100 * wrong / count.clamp(min=1),
        "cardinality_error": (detected - offsets.diff()).abs().float().mean(),
        "no_object_matched": of_matched / count.clamp(min=1),
        "no_object_unmatched": (empty.sum() - of_matched) / (matched.numel() - count).clamp(min=1),
    }


@torch.no_grad()
def _instability(
    query_index: Tensor,  # [L, T]; rows of padding are -1 in every layer
    offsets: Tensor,  # [B + 1]
) -> dict[str, Tensor]:
    """Return the share of targets whose query changes from each layer to the next."""
    changed = (query_index[1:] != query_index[:-1]).sum(1) / offsets[-1].clamp(min=1)
    return {f"rematched_{layer}": share for layer, share in enumerate(changed.unbind())}
