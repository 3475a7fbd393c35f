"""Matching instability: the share of targets whose query changed since the last evaluation.

As in DN-DETR (Li et al. 2022, section 3.1), on the validation images, the same at each evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast import processes
from detr_fast.matching import FastMatcher


class MatchingInstability:
    """A record of the query matched to each validation target, from outputs that exist anyway.

    Args:
        matcher: the one used in training.
        state: what ``state`` returned when the run was saved, to resume from it.
    """

    def __init__(self, matcher: FastMatcher, state: dict[str, Tensor] | None = None) -> None:
        self.matcher = FastMatcher(
            matcher.cost_class, matcher.cost_bbox, matcher.cost_giou, nonfinite="last"
        )
        self._seen: dict[int, Tensor] = {}  # image id -> [M] query of each target; -1 = none
        self._before: dict[int, Tensor] | None = None
        if state is not None:
            rows = state["query_index"].split(state["counts"].tolist())
            self._before = dict(zip(state["image_ids"].tolist(), rows, strict=True))

    def observe(self, outputs: dict[str, Any], targets: Sequence[dict[str, Tensor]]) -> None:
        """Match one batch of an evaluation: outputs of the last layer, targets with image ids."""
        layer = {name: outputs[name].cpu() for name in ("pred_logits", "pred_boxes")}
        copies = [{name: target[name].cpu() for name in ("labels", "boxes")} for target in targets]
        for target, (queries, index) in zip(targets, self.matcher(layer, copies), strict=True):
            row = torch.full((len(target["labels"]),), -1)
            row[index] = queries
            self._seen[int(target["image_id"])] = row

    def finish(self) -> dict[str, float]:
        """Finish an evaluation, on every process; return ``rematched_epoch`` on rank 0.

        It is the share of the targets of all processes whose query changed. Empty on other ranks,
        after the first evaluation, if images or their numbers of targets are others since (a run
        was resumed after the annotations were corrected), and without targets.
        """
        now: dict[int, Tensor] = {}
        for part in processes.gather(self._seen):
            now |= part
        self._seen = {}
        before, self._before = self._before, now or None
        if before is None or _counts(before) != _counts(now):
            return {}
        total = sum(len(row) for row in now.values())
        changed = sum(int((row != before[image]).sum()) for image, row in now.items())
        return {"rematched_epoch": changed / total} if total else {}

    def state(self) -> dict[str, Tensor] | None:
        """Return the last evaluation's matching as tensors for a checkpoint; None before it."""
        if self._before is None:
            return None
        rows = list(self._before.values())
        return {
            "image_ids": torch.tensor(list(self._before)),
            "counts": torch.tensor([len(row) for row in rows]),
            "query_index": torch.cat(rows),
        }


def _counts(queries: dict[int, Tensor]) -> dict[int, int]:
    return {image: len(row) for image, row in queries.items()}
