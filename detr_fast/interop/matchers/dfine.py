"""The matcher of Peterande/D-FINE (``src/zoo/dfine/matcher.py``), and also of
Intellindust-AI-Lab/DEIM (``engine/deim/matcher.py``)."""

import torch
from torch import Tensor

from detr_fast import linear_sum_assignment
from detr_fast.interop.matchers import rtdetr
from detr_fast.interop.matchers.shared import (
    Outputs,
    Targets,
    cost_blocks,
    fast_matcher,
    match,
    place,
)
from detr_fast.matching import Pairs

_USED = 1e6  # the cost of a query that an earlier round of return_topk matched


class HungarianMatcher(rtdetr.HungarianMatcher):
    """Peng et al., "D-FINE" (2024); Huang et al., "DEIM" (2025).

    Arguments as for :class:`detr_fast.interop.matchers.rtdetr.HungarianMatcher`. A pair whose cost
    is NaN, from logits or from an infinite box, costs 1; a predicted box of NaN is an error.
    """

    def forward(
        self, outputs: Outputs, targets: Targets, return_topk: int | bool = False
    ) -> dict[str, Pairs]:
        """Match one decoder layer's predictions.

        Args:
            outputs, targets: as for :meth:`detr_fast.FastMatcher.forward`, the logits [B, N, K].
            return_topk: how many rounds of matching to join; 0 or False: one round.

        Returns:
            ``{"indices": ...}``, or with ``return_topk`` ``{"indices_o2m": ...}``. Each round
            leaves out the queries that earlier rounds matched, and also, as the original does, the
            queries whose *numbers* equal those of the matched targets. If too few are left, which
            of those are matched again is not specified.

        Raises:
            ValueError: as :meth:`detr_fast.FastMatcher.forward`, except for what costs 1.
        """
        pairs = match(self, self._options(), outputs, targets, _nan_costs_one)
        if not return_topk:
            return {"indices": place(self, pairs)}
        if not pairs:
            return {"indices_o2m": []}
        return {"indices_o2m": place(self, self._join_rounds(pairs, outputs, targets, return_topk))}

    def _join_rounds(
        self, pairs: Pairs, outputs: Outputs, targets: Targets, rounds: int | bool
    ) -> Pairs:
        fast = fast_matcher(self, self._options())
        costs = _nan_costs_one(cost_blocks(fast, outputs, targets))
        joined = [[(i.cpu(), j.cpu()) for i, j in pairs]]
        for _ in range(int(rounds) - 1):
            for cost, matched in zip(costs, joined[-1], strict=True):
                used = torch.cat(matched)
                cost[used[used < len(cost)]] = _USED
            joined.append(linear_sum_assignment(costs))
        return [
            (torch.cat([i for i, _ in image]), torch.cat([j for _, j in image]))
            for image in zip(*joined, strict=True)
        ]


def _nan_costs_one(blocks: list[Tensor]) -> list[Tensor]:
    return [cost.nan_to_num(nan=1.0) for cost in blocks]
