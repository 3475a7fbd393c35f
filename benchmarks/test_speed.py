"""Times to compare between commits: pytest benchmarks --benchmark-only --benchmark-autosave.

Not among the tests: it says nothing about right or wrong. ``--benchmark-compare`` shows the change
since the last saved run.
"""

import pytest
import torch

from benchmarks.cases import FAMILIES, Case, cost_matrices, make
from detr_fast import FastMatcher, linear_sum_assignment


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(1, 100, 5), (12, 100, 20), (96, 300, 50)])
def test_assignment(benchmark, size, family):
    """The bare solver, problems of different sizes."""
    matrices = cost_matrices(family, *size, exact=False, seed=0)
    benchmark(linear_sum_assignment, matrices)


@pytest.mark.parametrize("targets", [1, 20, 100])
def test_assignment_batch(benchmark, targets):
    """The bare solver, problems of one size in one tensor."""
    matrices = cost_matrices("trained", 12, 300, targets, exact=True, seed=0)
    benchmark(linear_sum_assignment, torch.stack([torch.from_numpy(m) for m in matrices]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(2, 100, 91, 20), (16, 300, 91, 50)])
def test_matcher(benchmark, size, family):
    """Costs and solver, six decoder layers."""
    layers, targets = make(Case(family, *size), 0)
    benchmark(FastMatcher().match_layers, layers, targets)


def test_matcher_fixed_cost(benchmark):
    """What a call costs with next to no work: one query, one target."""
    layers, targets = make(Case("trained", 1, 1, 91, 1, layers=1), 0)
    benchmark(FastMatcher().match_layers, layers, targets)
