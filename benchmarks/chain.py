"""How long the chain of dependent steps of an assignment is, which is what a GPU waits for.

A step is one visit of a search for shortest paths, or one round of the auction before it, in which
all rows without a column bid at once: each needs what the one before found. The steps of one
problem follow each other, those of others run beside them, so that the longest chain times the time
of a step is the least a batch can take.

This is the GPU's form (csrc/core/team_assignment.h) in NumPy, step for step, but for costs of such
different sizes that the GPU starts again, and for those near the ends of their type's range.
"""

from collections.abc import Iterable

import numpy as np

EXACT_ROUNDS, LAST_ROUNDS, MORE_ROUNDS, FEW_FREE = 8, 16, 64, 8
STEP, MOST_GAPS = 0.25, 16
SMALLEST = {np.float32: 2.0**-21, np.float64: 2.0**-50}  # raise of a rough bid, beside its numbers


def longest_chain(costs: Iterable[np.ndarray]) -> int:
    """The most steps that one of the problems [M, N], M <= N, takes after the greedy start."""
    return max((sum(solve(cost)[1:]) for cost in costs), default=0)


def solve(cost: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Of finite costs [M, N]: the optimal column of each row, rounds, and visits of searches.

    float32 costs have rough prices in float32, all others in float64.
    """
    cost = np.asarray(cost)
    solver = _Solver(cost if cost.dtype == np.float32 else cost.astype(np.float64))
    solver.solve()
    return solver.col_of, solver.rounds, solver.visits


class _Solver:
    def __init__(self, cost: np.ndarray) -> None:
        self.real = cost.dtype.type
        self.cost = cost.astype(np.float64)
        self.rows, self.cols = cost.shape
        self.v = np.zeros(self.cols)
        self.rounds = self.visits = 0
        self.assign_cheapest()

    def solve(self) -> None:
        for root in self.compete(self.typical_gap()):
            self.augment(root)
        for root in np.flatnonzero(self.v < 0):
            if self.row_of[root] < 0 and self.v[root] < 0:
                self.release(root)

    def free_rows(self) -> list[int]:
        return np.flatnonzero(self.col_of < 0).tolist()

    def assign_cheapest(self) -> None:
        reduced = self.cost - self.v
        self.u = reduced.min(1)
        self.row_of, self.col_of = np.full(self.cols, -1), np.full(self.rows, -1)
        for i, j in enumerate(reduced.argmin(1)):  # of the rows with one cheapest column the first
            if self.row_of[j] < 0:
                self.row_of[j], self.col_of[i] = i, j

    def typical_gap(self) -> float:
        free = self.free_rows()
        if not free or self.cols == 1:
            return 0.0
        least = np.partition(self.cost[free], 1, axis=1)
        gaps = least[:, 1] - least[:, 0]
        logarithms = gaps[gaps > 0].astype(np.float32).view(np.uint32) >> 20  # nearly
        if not len(logarithms):
            return 0.0
        mean = logarithms.sum() // len(logarithms)
        return float(np.uint32(mean << 20).view(np.float32))

    def compete(self, gap: float) -> list[int]:  # rows that are free still
        free = self.free_rows()
        if not gap > 0:
            return free
        most, few = MOST_GAPS * gap, self.rows // 16
        if len(free) <= max(self.rows // 2, FEW_FREE + few):
            free = self.auction(free, 0, most, EXACT_ROUNDS)
        if len(free) > FEW_FREE + few:
            self.v = self.v.astype(self.real)  # rough prices, in the costs' precision
            self.auction(free, STEP * gap, most, self.rows + MORE_ROUNDS, few)
            self.v = self.v.astype(np.float64)
            self.assign_cheapest()
            free = self.auction(self.free_rows(), 0, most, LAST_ROUNDS)
        return free

    def auction(
        self, free: list[int], step: float, most: float, rounds: int, few: int = 0
    ) -> list[int]:
        for _ in range(rounds):
            if len(free) <= few:
                break
            self.rounds += 1
            bids = [self.bid(row, step, most) for row in free]
            cols = [col for col, _ in bids]
            left = []
            for k, (row, (col, v)) in enumerate(zip(free, bids, strict=True)):
                if col < 0 or cols.index(col) != k:
                    left.append(row)
                    continue
                holder = int(self.row_of[col])
                if holder >= 0:
                    self.col_of[holder] = -1
                    left.append(holder)
                self.u[row] += self.v[col] - v
                self.v[col], self.row_of[col], self.col_of[row] = v, row, col
            free = left
        return free

    def bid(self, row: int, step: float, most: float) -> tuple[int, float]:
        """The column that a row bids for (-1: none), and the column's v if it wins."""
        real = self.v.dtype.type
        reduced = self.cost[row].astype(real) - self.v
        # An exact bid leaves a tie.
        col = int(reduced.argmin()) if step else self.first_of(reduced == reduced.min())
        cost, v = reduced[col], self.v[col]
        self.u[row] = cost
        gap = np.delete(reduced, col).min(initial=real(np.inf)) - cost
        raise_ = min(gap, real(most)) + real(step)
        if step:
            least = real(SMALLEST[real]) * max(abs(cost), abs(v))
            raise_ = max(raise_, min(real(most) + real(step), least))
        bids = raise_ > 0 or self.row_of[col] < 0
        return (col, v - raise_) if bids else (-1, real(0))

    def first_of(self, ties: np.ndarray) -> int:
        """Of columns that tie, a free one if there is one."""
        (cols,) = np.nonzero(ties)
        free = cols[self.row_of[cols] < 0]
        return int((free if len(free) else cols)[0])

    def augment(self, root: int) -> None:
        distance, came_from = np.full(self.cols, np.inf), np.full(self.cols, -1)
        done = np.zeros(self.cols, dtype=bool)
        row, length, seen = root, 0.0, []
        while row >= 0:
            self.visits += 1
            seen.append((row, length))
            candidate = length - self.u[row] + self.cost[row] - self.v
            nearer = ~done & (candidate < distance)
            distance[nearer], came_from[nearer] = candidate[nearer], row
            length = distance[~done].min()
            col = self.first_of(~done & (distance == length))
            done[col] = True
            row = self.row_of[col]
        for i, reached in seen:
            self.u[i] += length - reached
        held = done & (self.row_of >= 0)
        self.v[held] -= length - distance[held]
        while True:  # hand the column on along the path
            i = came_from[col]
            self.row_of[col], self.col_of[i], col = i, col, self.col_of[i]
            if i == root:
                return

    def release(self, root: int) -> None:
        """Leads a row to a free column that has a price, or takes the price away."""
        distance, came_from = np.full(self.rows, np.inf), np.full(self.rows, -1)
        done = np.zeros(self.rows, dtype=bool)
        col, length, seen = root, 0.0, []
        last, shortest = root, -self.v[root]
        while True:
            self.visits += 1
            seen.append((col, length))
            candidate = length - self.v[col] + self.cost[:, col] - self.u
            nearer = ~done & (candidate < distance)
            distance[nearer], came_from[nearer] = candidate[nearer], col
            length = distance[~done].min(initial=np.inf)
            if not length < shortest:
                break
            row = int(np.flatnonzero(~done & (distance == length))[0])
            done[row] = True
            col = self.col_of[row]
            if length - self.v[col] < shortest:
                last, shortest = col, length - self.v[col]
        for j, reached in seen:
            self.v[j] = 0 if j == last else min(0, self.v[j] + shortest - reached)
        self.u[done] -= shortest - distance[done]
        col = last
        row, self.row_of[col] = self.row_of[col], -1
        while col != root:  # its row takes the column from which it was reached, and so on
            col = came_from[row]
            self.row_of[col], self.col_of[row], row = row, col, self.row_of[col]
