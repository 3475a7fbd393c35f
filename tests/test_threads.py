"""Threads, torch's or our own: the same results, errors and number as promised; fork and exit."""

import ctypes
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from matching_cases import predictions, targets_of

import detr_fast
from detr_fast import _C, FastMatcher
from detr_fast import linear_sum_assignment as solve

HERE = os.path.dirname(__file__)
PACKAGE = os.path.dirname(os.path.dirname(detr_fast.__file__))  # the same in subprocesses


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def batch(layers=6):
    """Predictions and targets that are work enough for several threads."""
    sizes = (30, 0, 50, 7, 90, 1, 20, 40)
    outputs = [predictions(8, 300, k=91, seed=seed) for seed in range(layers)]
    return outputs, targets_of(sizes, k=91)


def as_lists(matches):
    return [[(i.tolist(), j.tolist()) for i, j in layer] for layer in matches]


def test_matches_do_not_depend_on_the_number_of_threads():
    (layers, targets), results = batch(), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(as_lists(FastMatcher().match_layers(layers, targets)))
    assert all(result == results[0] for result in results)


def test_assignments_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    costs = [rng.random((300, m)) + rng.random((1, m)) for m in range(1, 101)]
    torch.set_num_threads(1)
    alone = solve(costs)
    torch.set_num_threads(4)
    for (rows, cols), (other_rows, other_cols) in zip(solve(costs), alone, strict=True):
        np.testing.assert_array_equal(rows, other_rows)
        np.testing.assert_array_equal(cols, other_cols)


def test_the_first_fault_is_reported_whichever_thread_finds_one_first():
    layers, targets = batch()
    for layer, image, query in ((5, 7, 3), (2, 4, 9), (2, 2, 200), (2, 2, 201), (3, 0, 0)):
        layers[layer]["pred_boxes"][image, query, 2] = -1
    torch.set_num_threads(4)
    for _ in range(20):
        with pytest.raises(ValueError, match=r"^layers\[2\]\['pred_boxes'\]\[2, 200\] is "):
            FastMatcher().match_layers(layers, targets)


def test_calls_from_several_threads_at_once():
    layers, targets = batch(layers=2)
    torch.set_num_threads(3)
    expected = as_lists(FastMatcher().match_layers(layers, targets))
    failures = []

    def call():
        for _ in range(10):
            if as_lists(FastMatcher().match_layers(layers, targets)) != expected:
                failures.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


SETUP = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from test_threads import as_lists, batch
from detr_fast import FastMatcher, _C
(layers, targets), matcher = batch(), FastMatcher()
"""


def run(code: str, threads: str = "") -> str:
    setup = SETUP.format(tests=HERE)
    done = subprocess.run(
        [sys.executable, "-c", setup + code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=HERE,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": PACKAGE,
            "DETR_FAST_THREADS": threads,
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
needs_openmp = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "GOMP_parallel"),
    reason="needs Linux and a torch with OpenMP",
)


def test_as_many_threads_as_torch_says_and_none_for_little_work():
    code = """
torch.set_num_threads(3)
matcher([{k: v[:2, :10] for k, v in l.items()} for l in layers][0], targets[:2])
print(_C.pool_size(), end=" ")
torch.set_num_threads(1)
matcher.match_layers(layers, targets); print(_C.pool_size(), end=" ")
torch.set_num_threads(3)
matcher.match_layers(layers, targets); print(_C.pool_size(), end=" ")
torch.set_num_threads(2)
matcher.match_layers(layers, targets); print(_C.pool_size(), end=" ")
"""
    assert run(code, "own") == "0 0 2 2"


@needs_openmp
def test_the_threads_are_those_that_torch_computes_with():
    code = """
def others(): return len(os.listdir("/proc/self/task")) - before
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
matcher([{k: v[:2, :10] for k, v in l.items()} for l in layers][0], targets[:2])
print(others(), end=" ")
matcher.match_layers(layers, targets); print(others(), end=" ")
torch.rand(1 << 20).exp(); print(others(), end=" ")
two = [{k: v[:2] for k, v in l.items()} for l in layers[:1]]
matcher.match_layers(two, targets[2:5:2]); print(others(), _C.pool_size())
"""
    assert run(code, "openmp") == "0 2 2 2 0"


@needs_openmp
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
def test_torchs_threads_are_used_while_they_are_awake():
    """Not while they sleep. On a busy machine they are awake now and then, each on its CPU."""
    code = """
import time
torch.set_num_threads(2)
matcher.match_layers(layers, targets); print(_C.pool_size(), end=" ")
time.sleep(1)
print(_C.threads_in_use(), end=" ")
matcher.match_layers(layers, targets); print(_C.pool_size(), end=" ")
here, there = sorted(os.sched_getaffinity(0))[:2]
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), {here if int(thread) == os.getpid() else there})
def used_after_torch():
    time.sleep(0.01)
    torch.rand(1 << 20).exp()
    return _C.threads_in_use()
print("OpenMP" if any(used_after_torch() == "OpenMP" for _ in range(1000)) else "own")
"""
    assert run(code) == "0 own 1 OpenMP"


@needs_fork
@pytest.mark.parametrize("threads", ["own", pytest.param("openmp", marks=needs_openmp)])
def test_a_forked_child_starts_its_own_threads(threads):
    """As a DataLoader's workers: forked after threads were used, and while they are in use."""
    code = """
import threading
torch.set_num_threads(3)
expected = as_lists(matcher.match_layers(layers, targets))
stop = False
def keep_busy():
    while not stop: matcher.match_layers(layers, targets)
busy = threading.Thread(target=keep_busy); busy.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        before = _C.pool_size()
        same = as_lists(matcher.match_layers(layers, targets)) == expected
        own = _C.threads_in_use() == "own" and (before, _C.pool_size()) == (0, 2)
        os._exit(0 if same and own else 1)
    codes.append(os.waitpid(child, 0)[1])
stop = True; busy.join()
assert as_lists(matcher.match_layers(layers, targets)) == expected
assert _C.pool_size() == (2 if _C.threads_in_use() == "own" else 0)
print(codes)
"""
    assert run(code, threads) == "[0, 0, 0, 0, 0]"


@needs_fork
def test_a_forked_child_that_imports_it_itself(tmp_path):
    """After torch has used threads in the parent, which the child has not."""
    code = f"""
import os, sys, numpy as np, torch
torch.set_num_threads(2)
torch.rand(1 << 20).exp()
child = os.fork()
if child == 0:
    sys.path.insert(0, {PACKAGE!r})
    from detr_fast import linear_sum_assignment
    pairs = linear_sum_assignment([np.random.rand(300, 100) for _ in range(100)])
    os._exit(7 if len(pairs) == 100 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.strip() == "7", done.stderr


@needs_fork
def test_a_forked_child_exits_in_the_ordinary_way():
    """Without torch, whose own pool of threads crashes at the exit of a forked child."""
    code = f"""
import importlib.util, os, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_C", {_C.__file__!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
costs = [np.random.rand(300, 100) for _ in range(100)]
module.linear_sum_assignments(costs, False, 3)
assert module.pool_size() == 2
child = os.fork()
if child == 0:
    if sys.argv[1] == "use":
        module.linear_sum_assignments(costs, False, 3)
        assert module.pool_size() == 2
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    for what in ("use", "leave"):
        command = [sys.executable, "-c", code, what]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HERE)
        assert done.stdout.strip() == "7", done.stderr


@pytest.mark.parametrize("threads", ["own", "openmp", ""])
def test_exit_is_quick_and_clean_after_use(threads):
    code = "torch.set_num_threads(4); matcher.match_layers(layers, targets); print('ok')"
    assert run(code, threads) == "ok"
