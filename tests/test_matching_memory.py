"""What matching needs beyond its inputs and results: one problem's costs per thread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")  # not on Windows

CODE = """
import resource, torch
from detr_fast import FastMatcher

def peak():  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

images, queries, classes, targets = 32, 900, 20, 100
boxes = torch.rand(images, queries, 4) * 0.5 + 0.25
layers = [{"pred_logits": torch.randn(images, queries, classes + 1), "pred_boxes": boxes}] * 2
wanted = [
    {"labels": torch.randint(classes, (targets,)), "boxes": torch.rand(targets, 4) * 0.5 + 0.25}
    for _ in range(images)
]
torch.set_num_threads(2)
matcher = FastMatcher()
matcher.match_layers([{k: v[:1, :5] for k, v in x.items()} for x in layers], wanted[:1])
before = peak()
first = matcher.match_layers(layers, wanted)
after_one = peak()
for _ in range(5):
    matcher.match_layers(layers, wanted)
print(after_one - before, peak() - after_one)
"""


def numbers_of(code: str) -> list[int]:
    """Run code in a process of its own; return the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


def test_memory_is_that_of_the_problems_at_work_and_is_used_again():
    """Not the [B N, T] costs of a batch: here 369 MB; nor those of all images, 11.5 MB a layer."""
    first, later = numbers_of(CODE)
    costs_of_a_problem = 900 * 100 * 4
    # Per thread the costs, the columns cut from them, and what is linear in the sizes.
    assert first < 2 * 4 * costs_of_a_problem
    assert later < costs_of_a_problem


SOLVER_CODE = """
import resource, numpy as np
from detr_fast import linear_sum_assignment

def peak():  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

rng = np.random.default_rng(0)
shape = (100, 300)  # rows that compete
cost = rng.random((100, 1)) + rng.random((1, 300)) + 1e-3 * rng.standard_normal(shape)
for _ in range(100):
    linear_sum_assignment(cost)
before = peak()
for _ in range(2000):
    linear_sum_assignment(cost)
print(peak() - before)
"""


def test_the_solver_needs_no_more_memory_for_later_problems():
    (more,) = numbers_of(SOLVER_CODE)
    assert more < 1 << 20
