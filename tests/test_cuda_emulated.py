"""The GPU's code on a machine without a GPU: launchers and kernels of csrc/cuda as nvcc compiles
them, run by an emulation (tests/cpp/ptx), behind the same bindings and the same Python.

The emulation raises for what compute-sanitizer looks for: accesses outside of tensors and of a
block's memory, shared memory that is read before it is written, accesses that no barrier orders,
and barriers that not all threads reach.

Most tests are those of a GPU, from their own files. A tensor that ``.cuda()`` returns stays on the
CPU, and says that it is on a GPU where the package asks.
"""

import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import test_cuda
import torch
from devices import OnGpu
from emulated_cuda import SOURCE, Emulated, build
from matching_cases import predictions, targets_of
from test_box_iou import test_batches_are_their_images as test_iou_of_batches
from test_box_iou import test_equals_torchvision as test_iou_equals_torchvision
from test_box_iou import test_every_constellation as test_iou_of_every_constellation
from test_box_iou import test_gradcheck as test_iou_gradcheck
from test_box_iou import test_half_precision_is_computed_in_float32 as test_iou_of_half_precision
from test_box_iou import test_not_contiguous as test_iou_of_strided_boxes
from test_box_losses import (
    test_a_query_of_several_targets_learns_from_all,
    test_every_constellation,
    test_expanded_gradients_are_read_with_their_stride,
    test_indices_out_of_range_count_as_unmatched,
    test_nan_is_not_hidden,
    test_not_contiguous_and_not_aligned,
    test_padding_behind_the_last_offset_counts_as_unmatched,
    test_target_classes,
    test_the_same_bits_every_time,
)
from test_box_losses import test_equals_the_twin as test_box_losses_equal_the_twin
from test_cuda import (
    FAULTS,
    assert_optimal,
    both,
    test_a_problem_too_large_for_the_block,
    test_assignment_faults,
    test_costs_of_any_size,
    test_costs_of_two_rows_hide_nothing_in_rows_with_far_smaller_ones,
    test_dtypes_and_options,
    test_last_is_behind_costs_of_any_size,
    test_nonfinite_last,
    test_standing_cases,
    test_the_largest_cost_and_forbidden_pairs,
    test_the_largest_costs_that_differ,
)
from test_matching_cuda import (
    MATCHER,
    test_dtypes_and_layouts,
    test_options_arrive,
    test_same_as_the_reference,
    test_wrong_shapes_are_named_at_once,
)

from benchmarks import chain, sanitized
from benchmarks.cases import FAMILIES, Case, cost_matrices, make
from benchmarks.sanitized import on_gpu
from detr_fast import (
    _C,
    FastMatcher,
    PackedTargets,
    faults,
    info,
    linear_sum_assignment,
    ops,
)
from detr_fast.losses import SetCriterion
from detr_fast.matching import cuda, placed
from detr_fast.ops import matched, pairwise

SHAPES = [(1, 1), (5, 9), (40, 40), (20, 300), (30, 70), (70, 30), (3, 900)]
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the emulated CUDA is for Linux"),
    pytest.mark.skipif(not SOURCE.is_dir(), reason="needs the source tree"),
    pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, and runs these tests"),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return Emulated(build(tmp_path_factory.mktemp("emulated_cuda")))


def to_gpu(tensor: torch.Tensor) -> OnGpu:
    return tensor.clone().as_subclass(OnGpu)


@pytest.fixture(autouse=True)
def gpu(emulated, monkeypatch):
    """What would be launched on a GPU is emulated, and returned to count launches."""
    monkeypatch.setattr(_C, "cuda", emulated, raising=False)
    monkeypatch.setattr(_C, "cuda_version", "emulated")
    for module in (matched, pairwise):
        monkeypatch.setattr(module, "kernel_for", lambda op, _: (getattr(emulated, op), (0, 0)))
    monkeypatch.setattr(torch.Tensor, "data_ptr", emulated.data_ptr)
    monkeypatch.setattr(torch.Tensor, "cuda", to_gpu)
    cuda._workspace.cache_clear()
    yield emulated
    cuda._workspace.cache_clear()
    faults._slots.clear()


class Kernels:
    """What tests/test_matching_cuda.py asks of its stand-in."""

    def __init__(self, emulated) -> None:
        self._launches, self._before = emulated.launches, emulated.launches()

    @property
    def calls(self) -> int:
        return self._launches() - self._before


@pytest.fixture
def kernels(gpu, monkeypatch):
    """Predictions on the CPU count as the GPU's."""
    monkeypatch.setattr(f"{MATCHER}._reads_whole_tensors", lambda layers: True)
    return Kernels(gpu)


BROKEN = {
    "nothing": None,
    "no_barrier_of_the_block": "a read (before the first write|unordered with .* another warp)",
    "no_barrier_of_the_warp": "a read unordered with a write by another lane",
    "a_ballot_for_a_barrier": "a read unordered with a write by another lane",
    "overwritten_before_it_is_read": "unordered with a (read|write) by another warp",
    "blocks_write_the_same": "a write unordered with a write by another block",
    "a_block_reads_what_another_writes": "unordered with a (read|write) by another block",
    "atomic_and_not": "unordered with a (read|write) by another (lane|warp)",
    "never_written": "a read before the first write",
    "outside_of_the_block": "thread 63: accesses memory outside of the block's",
    "outside_of_memory": "thread 63: accesses memory of nobody",
    "not_aligned": "the address is not aligned",
    "a_barrier_for_some": "a barrier of the block that not all threads reach",
    "a_lane_returns": "waits for lanes that never come",
    "a_warp_returns": "a barrier of the block that not all threads reach",
    "lanes_at_two_places": r"meets lanes that wait at tests/cpp/ptx/broken\.cu:\d+",
    "lanes_that_never_come": "waits for lanes that never come",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_undefined_is_an_error(name, emulated):
    if BROKEN[name] is None:
        found = emulated.run_broken(name)
        assert found[:64] == [70 - (t % 32 ^ 1) for t in range(64)]
        return
    with pytest.raises(RuntimeError, match=BROKEN[name]) as error:
        emulated.run_broken(name)
    assert re.search(rf"\b{name}\b", str(error.value))


def test_kernels_reach_only_the_tensors_they_are_given(gpu, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda tensor: gpu.data_ptr(tensor[:0]) + 4096)
    with pytest.raises(RuntimeError, match=r"csrc/.*: accesses memory of nobody"):
        linear_sum_assignment(torch.rand(1, 3, 4).cuda())


def test_what_compute_sanitizer_watches_on_a_gpu(gpu, kernels, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    before = gpu.launches_by_kernel()
    sanitized.run()
    ours = {name for name in before if name.startswith("detr_fast::")}
    assert "detr_fast::cuda::match_problems<true>" in ours
    after = gpu.launches_by_kernel()
    assert {name for name in ours if after[name] == before[name]} == set()  # each has run


def test_it_is_the_emulation_that_runs(gpu):
    layers, targets = [predictions(2, 30, seed=s) for s in range(3)], targets_of([4, 6])
    before = gpu.launches()
    FastMatcher().match_layers(layers, targets)
    assert gpu.launches() == before
    FastMatcher().match_layers(on_gpu(layers), on_gpu(targets))
    assert gpu.launches() == before + 2  # costs, assignment: all layers and images
    linear_sum_assignment(torch.rand(3, 4, 5).cuda())
    assert gpu.launches() == before + 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["random", "initial", "integers", "forbidden"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_assignment_is_scipys(shape, kind, dtype):
    test_cuda.test_assignment_is_scipys(kind, shape, dtype)


@pytest.mark.parametrize("arch", [900, 750])
@pytest.mark.parametrize("most", [3, 1 << 20, 1 << 52])
def test_what_a_team_finds_together(arch, most, emulated):
    """On GPUs that find a minimum in one instruction and on older ones, ties included."""
    rng = np.random.default_rng(most)
    for _ in range(5):
        values, indices = rng.integers(0, most, 96), rng.integers(0, 20, 96)
        values[rng.integers(96)] <<= int(rng.integers(10))
        rows = getattr(emulated, f"reduce_{arch}")(values.tolist(), indices.tolist())
        narrow = values & 0xFFFFFFFF
        for k, row in enumerate(rows):
            warp = slice(k // 32 * 32, k // 32 * 32 + 32)
            expected = []
            for of in (values, narrow):
                for team in (warp, slice(None)):
                    expected += min(zip(of[team], indices[team], strict=True))
            sums = [indices[warp].sum(), indices.sum(), indices[warp].sum()]
            assert row == [*expected, *sums]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("queries", "targets"), [(60, 20), (150, 50), (400, 40), (40, 40)])
def test_the_chain_is_as_long_as_the_benchmark_counts(family, queries, targets, dtype, gpu):
    for cost in cost_matrices(family, 3, queries, targets, True, 0):
        cols, *counts = gpu.solve(cost.astype(dtype))
        expected, *expected_counts = chain.solve(cost.astype(dtype))
        assert counts == expected_counts
        assert cols == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(2, 100, 91, 20), (1, 300, 91, 50), (2, 50, 1204, 60)])
def test_sizes_of_detectors(family, size):
    layers, targets = make(Case(family, *size, layers=2), seed=3)
    assert_optimal(layers, targets, *both(layers, targets))


@pytest.mark.parametrize(
    "size", [(30, 100, 20), (3, 900, 100), (2, 4500, 30), (1, 4501, 31), (1, 100, 900)]
)
def test_a_small_gpu(size, gpu, monkeypatch):
    """Its blocks have less shared memory: for costs, or for the solver itself."""

    def match(**given):
        assert given["memory"] % 8 == 0  # of doubles
        gpu.match(**{**given, "device": 1})

    small = SimpleNamespace(
        match=match,
        assignment_workspace=lambda device, rows, cols: gpu.assignment_workspace(1, rows, cols),
    )
    monkeypatch.setattr(_C, "cuda", small)
    images, queries, targets_of_one = size
    layers = [predictions(images, queries)]
    targets = targets_of([max(1, targets_of_one - k) for k in range(images)])
    sides = sorted((queries, targets_of_one))
    assert bool(gpu.assignment_workspace(1, *sides)) == (queries >= 4500)
    assert not gpu.assignment_workspace(0, *sides)
    before = gpu.launches()
    assert_optimal(layers, targets, *both(layers, targets))
    assert gpu.launches() == before + 2


@pytest.mark.parametrize(("images", "layers"), [(300, 1), (1, 35)])
def test_more_images_or_layers_than_one_launch_takes(images, layers, gpu):
    sizes = [k % 4 + (images == 1) for k in range(images)]
    outputs, targets = [predictions(images, 6, seed=s) for s in range(layers)], targets_of(sizes)
    before = gpu.launches()
    found = both(outputs, targets)
    assert gpu.launches() == before + 4
    assert_optimal(outputs, targets, *found)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("when", ["check", "next call", "cpu indices"])
def test_faults_are_named_and_harm_nothing_else(name, when, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    test_cuda.test_faults_are_named_and_harm_nothing_else(name, when)


def test_a_fault_of_the_last_call_is_printed(capsys):
    outputs, targets = on_gpu(predictions(3, 20)), on_gpu(targets_of([4, 5, 6]))
    outputs["pred_logits"][1, 7] = torch.nan
    FastMatcher()(outputs, targets)
    faults._print_pending()
    found = capsys.readouterr().err
    assert found.startswith("detr-fast: warning: outputs['pred_logits'][1, 7] has no class cost")


class OnGpu0(OnGpu):
    """Says which GPU it is on, too."""

    device = torch.device("cuda", 0)


@pytest.fixture
def waits(gpu, monkeypatch):
    """FastMatcher sees predictions on a GPU; how many launches each of its waits came after.

    What allocates is told of the CPU, where the tensors are.
    """
    found, before = [], gpu.launches()
    read_layers, read_targets = placed.read_layers, placed.read_targets
    launch = cuda.launch

    def as_kind(tensors, kind):
        return [tensor.as_subclass(kind) for tensor in tensors]

    def launch_here(logits, boxes, *others):
        return launch(as_kind(logits, torch.Tensor), as_kind(boxes, torch.Tensor), *others)

    def synchronize(device):
        assert device == torch.device("cuda", 0)
        found.append(gpu.launches() - before)

    for name, value in (
        (
            f"{MATCHER}.read_layers",
            lambda *given: tuple(as_kind(part, OnGpu0) for part in read_layers(*given)),
        ),
        (
            f"{MATCHER}.read_targets",
            lambda targets, images, device, real: read_targets(
                targets, images, torch.device("cpu"), real
            ),
        ),
        ("detr_fast.matching.cuda.launch", launch_here),
    ):
        monkeypatch.setattr(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return found


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("method", ["forward", "match_layers", "match_packed"])
def test_with_sync_the_same_call_waits_and_raises(name, method, waits):
    message, spoil = FAULTS[name]
    good, good_targets = predictions(3, 20), targets_of([4, 5, 6])
    outputs, targets = on_gpu(good), on_gpu(good_targets)
    spoil(outputs, targets)
    matcher = FastMatcher(validate="sync")

    def match(outputs, targets):
        return getattr(matcher, method)(outputs if method == "forward" else [outputs], targets)

    with pytest.raises(ValueError, match=message) as error:
        match(outputs, targets)
    assert "earlier call" not in str(error.value)
    assert waits == [2]  # behind the costs and the assignment
    match(on_gpu(good), on_gpu(good_targets))
    assert waits == [2, 4]


def test_with_sync_a_capture_waits_for_nothing(waits, monkeypatch):
    """Which would end it. A later call outside raises what was found."""
    outputs, targets = on_gpu(predictions(3, 20)), on_gpu(targets_of([4, 5, 6]))
    message, spoil = FAULTS["box"]
    spoil(outputs, targets)
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        FastMatcher(validate="sync")(outputs, targets)
    assert waits == []
    with pytest.raises(ValueError, match=f"{message}.*earlier call"):
        FastMatcher(validate="sync")(outputs, targets)


def test_without_sync_the_same_call_neither_waits_nor_raises(waits):
    outputs, targets = on_gpu(predictions(3, 20)), on_gpu(targets_of([4, 5, 6]))
    message, spoil = FAULTS["box"]
    spoil(outputs, targets)
    FastMatcher()(outputs, targets)
    assert waits == []
    with pytest.raises(ValueError, match=f"{message}.*earlier call"):
        FastMatcher()(outputs, targets)
    assert waits == []


def test_the_report_names_every_op_of_these_bindings(gpu):
    """These are the bindings of a build with CUDA kernels; what is in _C alone is for the CPU."""
    forms = {name for name in dir(gpu) if not name.startswith("_") and hasattr(_C, name)}
    assert {"match", "box_losses_backward"} <= forms <= set(info.OPS)
    lines = info.report().partition("\ncompiled ops\n")[2].splitlines()
    found = dict(line.split(maxsplit=1) for line in lines)
    assert found == {op: "CPU, CUDA" if op in forms else "CPU" for op in info.OPS}


@pytest.mark.parametrize("shape", [(300, 5, 9), (150, 9, 5)])
def test_a_batch_is_one_launch(shape, gpu):
    costs = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    before = gpu.launches()
    found = linear_sum_assignment(costs.cuda())
    assert gpu.launches() == before + 1
    for ours, expected in zip(found, linear_sum_assignment(costs), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    "shape",
    [(160, 5, 9), (170, 40, 12), (160, 30, 70), (159, 5, 9), (160, 3, 330), (160, 180, 190)],
)
def test_many_small_problems_are_solved_by_smaller_blocks(shape, gpu, monkeypatch):
    """On a GPU of 20 multiprocessors from 160 on; whether costs fit into shared memory or not, but
    not with many columns, nor if fewer warps would run at once."""
    small = SimpleNamespace(
        linear_sum_assignment=lambda **given: gpu.linear_sum_assignment(**{**given, "device": 1}),
        assignment_workspace=lambda device, rows, cols: gpu.assignment_workspace(1, rows, cols),
    )
    monkeypatch.setattr(_C, "cuda", small)
    generator = torch.Generator().manual_seed(2)
    costs = torch.rand(shape, generator=generator)
    costs[::3] = torch.randint(6, costs[::3].shape, generator=generator).float()
    before = gpu.launches_by_kernel()
    rows, cols = linear_sum_assignment(costs.cuda())
    after = gpu.launches_by_kernel()
    (kernel,) = [name for name in after if after[name] > before[name]]
    few = len(costs) >= 160 and max(shape[1:]) <= 100
    assert f", {2 if few else 8}, true>" in kernel
    for cost, i, j in zip(costs, rows, cols, strict=True):
        test_cuda.assert_scipys(cost, i, j)


def test_ragged_assignments(gpu):
    g = torch.Generator().manual_seed(6)
    shapes = [(3, 8), (8, 3), (1, 1), (30, 100), (0, 5), (60, 10)] * 6 + [(2, 3)] * 500
    costs = [torch.rand(shape, generator=g) for shape in shapes]
    before = gpu.launches()
    found = linear_sum_assignment([cost.cuda() for cost in costs])
    assert gpu.launches() == before + 2
    for pair, expected in zip(found, linear_sum_assignment(costs), strict=True):
        assert torch.equal(pair[0], expected[0]) and torch.equal(pair[1], expected[1])


@pytest.mark.parametrize("capacity", [None, 25])
def test_the_whole_criterion(capacity, kernels, monkeypatch):
    """Matching, box losses with their gradient, wanted classes: the CPU's loss and gradients."""
    targets = targets_of([4, 0, 9])
    results = []
    for on_gpu_now in (False, True):
        outputs = predictions(3, 20)
        outputs["aux_outputs"] = [predictions(3, 20, seed=s) for s in (1, 2)]
        leaves = [outputs, *outputs["aux_outputs"]]
        for layer in leaves:
            for name in ("pred_logits", "pred_boxes"):
                layer[name].requires_grad_()
        with monkeypatch.context() as patch:
            if not on_gpu_now:
                patch.setattr(f"{MATCHER}._reads_whole_tensors", lambda layers: False)
                for module in (matched, pairwise):
                    patch.setattr(module, "kernel_for", lambda op, _: (getattr(_C, op), ()))
            given = targets if capacity is None else PackedTargets.pack(targets, capacity)
            before = kernels.calls
            losses = SetCriterion(5)(outputs, given)
            losses["loss"].backward()
            assert (kernels.calls - before > 4) == on_gpu_now
        gradients = [layer[n].grad for layer in leaves for n in ("pred_logits", "pred_boxes")]
        results.append([losses["loss"].detach(), *gradients])
    torch.testing.assert_close(*results)


def test_another_device_is_made_current_for_the_call_alone(gpu, monkeypatch):
    boxes = torch.rand(5, 4)
    expected = ops.box_iou(boxes, boxes)
    for device, message in ((1, None), (7, "cudaSetDevice.*cudaErrorInvalidDevice")):
        monkeypatch.setattr(
            pairwise, "kernel_for", lambda op, _, device=device: (getattr(gpu, op), (device, 0))
        )
        if message is None:
            assert torch.equal(ops.box_iou(boxes, boxes), expected)
        else:
            with pytest.raises(RuntimeError, match=message):
                ops.box_iou(boxes, boxes)
        assert gpu.current_device() == 0


def test_a_launch_that_is_too_large_is_an_error():
    layers, images = 1, 65536
    index = torch.zeros(layers, 1, dtype=torch.int64)
    offsets = torch.ones(images + 1, dtype=torch.int32)
    offsets[0] = 0
    with pytest.raises(RuntimeError, match=r"wanted_classes.*cudaErrorInvalidConfiguration"):
        ops.target_classes(index, torch.zeros(1, dtype=torch.int64), offsets, 1, 3)
    classes = ops.target_classes(index, torch.zeros(1, dtype=torch.int64), offsets[:3], 1, 3)
    assert classes.tolist() == [[[0], [3]]]  # the next call does not find that error again
