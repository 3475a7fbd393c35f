"""How long the chain of dependent steps of an assignment is, which is what a GPU waits for.

A step is one visit to a row in the search for shortest augmenting paths: each needs the minimum
that the one before found. The steps of one problem follow each other, those of others run beside
them, so that the longest chain times the time of a step is the least a batch can take.
"""

from collections.abc import Iterable

import numpy as np


def longest_chain(costs: Iterable[np.ndarray]) -> int:
    """The most steps that one of the problems [M, N], M <= N, takes after the greedy start."""
    return max((solve(cost)[1] for cost in costs), default=0)


def solve(cost: np.ndarray) -> tuple[np.ndarray, int]:
    """The optimal column of each row, and the visits to rows that it took; as the GPU's form."""
    cost = np.asarray(cost, dtype=np.float64)
    rows, cols = cost.shape
    u, v = cost.min(1), np.zeros(cols)
    row_of, col_of = np.full(cols, -1), np.full(rows, -1)
    for i, j in enumerate(cost.argmin(1)):  # of the rows with one cheapest column the first has it
        if row_of[j] < 0:
            row_of[j], col_of[i] = i, j
    steps = 0
    for root in np.flatnonzero(col_of < 0):
        distance, came_from = np.full(cols, np.inf), np.full(cols, -1)
        done = np.zeros(cols, dtype=bool)
        row, length = root, 0.0
        seen = [(root, 0.0)]
        while True:
            steps += 1
            candidate = length + cost[row] - u[row] - v
            better = ~done & (candidate < distance)
            distance[better], came_from[better] = candidate[better], row
            open_ = np.where(done, np.inf, distance)
            length = open_.min()
            nearest = np.flatnonzero(open_ == length)
            free = nearest[row_of[nearest] < 0]
            j = (free if len(free) else nearest)[0]
            done[j] = True
            row = row_of[j]
            if row < 0:
                break
            seen.append((row, length))
        for i, reached in seen:
            u[i] += length - reached
        held = done & (row_of >= 0)
        v[held] -= length - distance[held]
        while True:  # hand the column on along the path
            i = came_from[j]
            row_of[j], col_of[i], j = i, j, col_of[i]
            if i == root:
                break
    return col_of, steps
