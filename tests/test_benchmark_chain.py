"""The count of dependent steps in the report of a GPU: by a solver that finds SciPy's answers."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from benchmarks.cases import FAMILIES, cost_matrices
from benchmarks.chain import longest_chain, solve


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_optimal(family):
    for cost in cost_matrices(family, 20, 60, 25, False, 0):
        cols, rounds, visits = solve(cost)
        assert len(set(cols)) == len(cols)
        rows = np.arange(len(cost))
        assert cost[rows, cols].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum())
        assert (rounds + visits > 0) == (len(set(cost.argmin(1))) < len(cost))


def test_by_hand():
    # The second row bids 5 for the first column, which the first row then leaves for the second.
    cost = np.array([[0.0, 1, 9], [0, 9, 5]])
    assert solve(cost)[0].tolist() == [1, 0] and solve(cost)[1:] == (2, 0)
    # Without a difference nobody bids: the second row's search ends at the first free column.
    assert solve(np.zeros((2, 3)))[1:] == (0, 1)
    assert longest_chain([np.eye(3)[::-1] * -1, cost]) == 2
    assert longest_chain([]) == 0


def test_large_costs_leave_prices():
    """Columns that the auction has raised, and that nobody holds in the end, cost nothing again."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        row, col = rng.random((40, 1)), rng.random((1, 60))
        cost = np.abs(3 * row - col - 1) + 0.01 * rng.random((40, 60))
        found = cost[np.arange(40), solve(cost)[0]].sum()
        assert found == pytest.approx(cost[linear_sum_assignment(cost)].sum(), abs=1e-9)


def test_untrained_problems_have_the_longer_chain():
    chains = [longest_chain(cost_matrices(f, 10, 100, 30, True, 0)) for f in ("initial", "trained")]
    assert chains[0] > 10 * max(1, chains[1])
