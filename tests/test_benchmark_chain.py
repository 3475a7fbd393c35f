"""The count of dependent steps in the report of a GPU: by a solver that finds SciPy's answers."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from benchmarks.cases import FAMILIES, cost_matrices
from benchmarks.chain import longest_chain, solve


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_optimal(family):
    for cost in cost_matrices(family, 20, 60, 25, False, 0):
        cols, steps = solve(cost)
        assert len(set(cols)) == len(cols)
        rows = np.arange(len(cost))
        assert cost[rows, cols].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum())
        cheapest = cost.argmin(1)
        missed = len(cheapest) - len(set(cheapest))
        assert steps >= 2 * missed  # each search visits its root and the row that was first


def test_by_hand():
    assert solve(np.array([[0.0, 1, 9], [0, 9, 5]]))[1] == 2
    assert longest_chain([np.eye(3)[::-1] * -1, np.array([[0.0, 1, 9], [0, 9, 5]])]) == 2
    assert longest_chain([]) == 0


def test_untrained_problems_have_the_longer_chain():
    chains = [longest_chain(cost_matrices(f, 10, 100, 30, True, 0)) for f in ("initial", "trained")]
    assert chains[0] > 10 * max(1, chains[1])
