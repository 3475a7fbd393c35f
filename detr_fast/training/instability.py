"""Matching instability: the share of targets whose query changed since the last evaluation.

As in DN-DETR (Li et al. 2022, section 3.1), on the validation images, the same at each evaluation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast import processes


class MatchingInstability:
    """A record of the query matched to each validation target.

    Args:
        state: what ``state`` returned when the run was saved, to resume from it.
    """

    def __init__(self, state: dict[str, Tensor] | None = None) -> None:
        self._rows: list[Tensor] = []  # of each batch, [T]
        self._images: list[int] = []  # the ids of all of them
        self._counts: list[int] = []  # and their numbers of targets
        self._before: dict[int, Tensor] | None = None  # image id -> [M] query of each target
        if state is not None:
            self._before = _by_image(
                state["query_index"], state["image_ids"].tolist(), state["counts"].tolist()
            )

    def add(
        self,
        query_index: Tensor,  # [T] the targets' queries in the last layer; -1 = none; any device
        targets: Sequence[dict[str, Tensor]],  # with image ids
    ) -> None:
        """Add the matching of one batch of an evaluation, without waiting for its device."""
        self._rows.append(query_index)
        self._images += [int(target["image_id"]) for target in targets]
        self._counts += [len(target["labels"]) for target in targets]

    def finish(self) -> dict[str, float]:
        """Finish an evaluation, on every process; return ``rematched_epoch`` on rank 0.

        It is the share of the targets of all processes whose query changed. Empty on other ranks,
        after the first evaluation, if images or their numbers of targets are others since (a run
        was resumed after the annotations were corrected), and without targets.
        """
        # One tensor: a view of it, sent to another process, would take the whole of it along.
        rows = torch.cat(self._rows).cpu() if self._rows else torch.empty(0, dtype=torch.int64)
        parts = processes.gather((rows, self._images, self._counts))
        self._rows, self._images, self._counts = [], [], []
        now: dict[int, Tensor] = {}
        for part in parts:
            now |= _by_image(*part)
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


def _by_image(query_index: Tensor, images: list[int], counts: list[int]) -> dict[int, Tensor]:
    return dict(zip(images, query_index.split(counts), strict=True))


def _counts(queries: dict[int, Tensor]) -> dict[int, int]:
    return {image: len(row) for image, row in queries.items()}
