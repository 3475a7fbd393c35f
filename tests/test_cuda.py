"""Matching and assignment on a GPU: the CPU's answers, and no wait."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from devices import needs_cuda, needs_two_gpus
from matching_cases import CASES, predictions, targets_of
from scipy.optimize import linear_sum_assignment as scipy_solve

from benchmarks.cases import FAMILIES, Case, make
from benchmarks.sanitized import on_gpu
from detr_fast import FastMatcher, PackedTargets, check_faults, linear_sum_assignment, reference

pytestmark = needs_cuda


@pytest.fixture(autouse=True)
def no_fault_left():
    yield
    check_faults()


def assert_optimal(layers, targets, matches, twins, **options) -> None:
    """The totals of the reference, whose costs are rounded differently."""
    for layer, ours, theirs in zip(layers, matches, twins, strict=True):
        for b, target in enumerate(targets):
            cost = reference.matching_cost(
                layer["pred_logits"][b].double(),
                layer["pred_boxes"][b].double(),
                target["labels"],
                target["boxes"].double(),
                **options,
            )
            (i, j), (twin_i, twin_j) = (x.cpu() for x in ours[b]), theirs[b]
            assert i.tolist() == sorted(set(i.tolist())) and len(i) == len(twin_i)
            assert len(set(j.tolist())) == len(j)
            assert cost[i, j].sum().item() == pytest.approx(
                cost[twin_i, twin_j].sum().item(), abs=1e-4
            )


def both(layers, targets, **options):
    matcher = FastMatcher(**options)
    given = on_gpu(layers), on_gpu(targets)
    return matcher.match_layers(*given), FastMatcher(**options).match_layers(layers, targets)


@pytest.mark.parametrize("name", CASES)
def test_standing_cases(name) -> None:
    b, n, sizes = CASES[name]
    layers, targets = [predictions(b, n, seed=s) for s in range(3)], targets_of(sizes)
    assert_optimal(layers, targets, *both(layers, targets))
    # Sizes known to the device alone.
    packed = PackedTargets.pack(targets, capacity=sum(sizes) + 7)
    found = FastMatcher().match_packed(on_gpu(layers), packed).query_index.cpu()
    expected = FastMatcher().match_packed(layers, packed).query_index
    assert (found == -1).sum() == (expected == -1).sum()
    assert (found[:, sum(sizes) :] == -1).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "size",
    [(2, 100, 91, 20), (16, 300, 91, 100), (4, 900, 91, 300), (2, 3900, 91, 40), (3, 50, 1204, 90)],
)
def test_sizes_of_detectors(family, size) -> None:
    layers, targets = make(Case(family, *size, layers=2), seed=3)
    assert_optimal(layers, targets, *both(layers, targets))


def test_more_images_and_layers_than_one_launch_takes() -> None:
    sizes = [k % 4 for k in range(300)]
    layers, targets = [predictions(300, 6, seed=s) for s in range(35)], targets_of(sizes)
    assert_optimal(layers, targets, *both(layers, targets))


def test_a_problem_too_large_for_the_block() -> None:
    layers, targets = [predictions(1, 12001)], targets_of([31])
    assert_optimal(layers, targets, *both(layers, targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_cost": "focal", "focal_alpha": 0.3, "focal_gamma": 1.5},
        {"giou_guard": "eps", "giou_eps": 1e-3},
        {"giou_guard": "clamp", "giou_eps": 1e-2},
    ],
)
def test_dtypes_and_options(dtype, options) -> None:
    layers, targets = (
        [predictions(3, 60, seed=s, dtype=dtype) for s in range(2)],
        targets_of([9, 0, 70]),
    )
    assert_optimal(layers, targets, *both(layers, targets, **options), **options)


def test_nonfinite_last() -> None:
    outputs, targets = predictions(2, 8), targets_of([7, 8])
    outputs["pred_logits"][0, 2:4] = torch.nan
    outputs["pred_boxes"][1, 5, 2] = -1
    ours, twins = both([outputs], targets, nonfinite="last")
    for (i, _), (twin_i, _) in zip(ours[0], twins[0], strict=True):
        assert len(i) == len(twin_i)
        assert set(i.tolist()) & {2, 3} == set(twin_i.tolist()) & {2, 3}


def test_last_is_behind_costs_of_any_size() -> None:
    """Adding 1 to them may change nothing."""
    logits = torch.tensor([[[torch.nan, 0.0], [0.0, 0.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.1], [4e6, 4e6, 10, 10]]])
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[10.0, 10, 5, 5]])}]
    outputs = {"pred_logits": logits, "pred_boxes": boxes}
    ours, _ = both([outputs], targets, nonfinite="last")
    assert ours[0][0][0].tolist() == [1]


def test_default_device_does_not_matter() -> None:
    layers, targets = [predictions(3, 40)], targets_of([5, 0, 11])
    expected = FastMatcher().match_layers(layers, targets)
    with torch.device("cuda"):
        found = FastMatcher().match_layers(on_gpu(layers), targets)
        for name, value in vars(PackedTargets.pack(targets)).items():
            assert name in ("counts", "most") or value.device.type == "cpu"
    assert_optimal(layers, targets, found, expected)


def test_targets_from_the_cpu_and_packed() -> None:
    layers, targets = [predictions(3, 40)], targets_of([5, 0, 11])
    matcher = FastMatcher()
    expected = matcher.match_layers(on_gpu(layers), on_gpu(targets))
    for given in (targets, PackedTargets.pack(targets), PackedTargets.pack(targets).pin_memory()):
        for (i, j), (i2, j2) in zip(
            matcher.match_layers(on_gpu(layers), given)[0], expected[0], strict=True
        ):
            assert i.is_cuda and torch.equal(i, i2) and torch.equal(j, j2)
    host = FastMatcher(index_device="cpu").match_layers(on_gpu(layers), targets)
    assert host[0][0][0].device.type == "cpu" and torch.equal(
        host[0][2][1], expected[0][2][1].cpu()
    )


@pytest.fixture
def waits_are_errors():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_no_wait(request) -> None:
    layers, targets = [predictions(3, 40, seed=s) for s in range(6)], targets_of([5, 0, 11])
    gpu_layers, gpu_targets = on_gpu(layers), on_gpu(targets)
    packed = PackedTargets.pack(targets).pin_memory()
    matcher = FastMatcher()
    matcher.match_layers(gpu_layers, gpu_targets)
    request.getfixturevalue("waits_are_errors")
    for given in (gpu_targets, targets, packed):
        matches = matcher.match_layers(gpu_layers, given)
        flat = matcher.match_packed(gpu_layers, given)
    torch.cuda.set_sync_debug_mode("default")
    assert_optimal(layers, targets, matches, FastMatcher().match_layers(layers, targets))
    assert flat.query_index.shape == (6, 16)


def test_on_a_side_stream() -> None:
    layers, targets = make(Case("random", 8, 300, 91, 100, layers=6), seed=1)
    expected = FastMatcher().match_layers(layers, targets)
    gpu_layers, gpu_targets = on_gpu(layers), on_gpu(targets)
    busy, stream = torch.randn(4096, 4096, device="cuda"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = busy @ busy * 1e-3
        # Written only once the stream gets here: another stream would read zeros.
        late = [{k: torch.zeros_like(v) for k, v in layer.items()} for layer in gpu_layers]
        for into, layer in zip(late, gpu_layers, strict=True):
            for key in into:
                into[key].copy_(layer[key])
        matches = FastMatcher().match_layers(late, gpu_targets)
    stream.synchronize()
    assert_optimal(layers, targets, matches, expected)


@needs_two_gpus
def test_on_another_device() -> None:
    layers, targets = [predictions(3, 40)], targets_of([5, 0, 11])
    there = [{k: v.to("cuda:1") for k, v in layer.items()} for layer in layers]
    matches = FastMatcher().match_layers(there, targets)
    assert matches[0][0][0].device == torch.device("cuda:1")
    assert_optimal(layers, targets, matches, FastMatcher().match_layers(layers, targets))


def test_captured_in_a_graph_and_replayed_with_other_batches() -> None:
    matcher = FastMatcher()
    batches = []
    for seed, sizes in enumerate([(5, 0, 11), (0, 0, 0), (12, 8, 0), (1, 1, 1)]):
        layers = [predictions(3, 10, seed=10 * seed + k) for k in range(2)]
        batches.append((layers, targets_of(sizes, seed=seed)))
    static_layers = on_gpu(batches[0][0])
    static_targets = PackedTargets.pack(batches[0][1], capacity=20).to("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        matcher.match_packed(static_layers, static_targets)  # warm-up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        matches = matcher.match_packed(static_layers, static_targets)
    for layers, targets in batches:
        packed = PackedTargets.pack(targets, capacity=20)
        static_targets.copy_(packed)
        for into, layer in zip(static_layers, layers, strict=True):
            for key in into:
                into[key].copy_(layer[key])
        graph.replay()
        expected = FastMatcher().match_packed(layers, packed).query_index
        assert torch.equal(matches.query_index.cpu(), expected)


def test_compiled_whole() -> None:
    layers, targets = [predictions(3, 40, seed=s) for s in range(2)], targets_of([5, 0, 11])
    compiled = torch.compile(FastMatcher().match_layers, fullgraph=True)
    matches = compiled(on_gpu(layers), on_gpu(targets))
    assert_optimal(layers, targets, matches, FastMatcher().match_layers(layers, targets))


def test_under_autocast() -> None:
    layers, targets = [predictions(3, 40)], targets_of([5, 0, 11])
    with torch.autocast("cuda", dtype=torch.float16):
        matches = FastMatcher().match_layers(on_gpu(layers), on_gpu(targets))
    assert_optimal(layers, targets, matches, FastMatcher().match_layers(layers, targets))


FAULTS = {
    "label": (r"targets\[1\]\['labels'\]\[2\]", lambda o, t: t[1]["labels"].__setitem__(2, 5)),
    "negative label": (
        r"targets\[1\]\['labels'\]\[2\]",
        lambda o, t: t[1]["labels"].__setitem__(2, -1),
    ),
    "target box": (
        r"targets\[1\]\['boxes'\]\[2\]",
        lambda o, t: t[1]["boxes"].__setitem__((2, 3), -0.5),
    ),
    "logits": (
        r"\['pred_logits'\]\[1, 7\]",
        lambda o, t: o["pred_logits"].__setitem__((1, 7, 3), torch.nan),
    ),
    "box": (
        r"\['pred_boxes'\]\[1, 7\]",
        lambda o, t: o["pred_boxes"].__setitem__((1, 7, 0), torch.inf),
    ),
    "overflow": (r"cost of matching", lambda o, t: o["pred_boxes"].__setitem__((1, 7, 2), 3e38)),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("when", ["check", "next call", "sync", "cpu indices"])
def test_faults_are_named_and_harm_nothing_else(name, when) -> None:
    message, spoil = FAULTS[name]
    good, good_targets = predictions(3, 20), targets_of([4, 5, 6])
    outputs, targets = on_gpu(good), on_gpu(good_targets)
    spoil(outputs, targets)
    if when in ("sync", "cpu indices"):
        option = {"validate": "sync"} if when == "sync" else {"index_device": "cpu"}
        with pytest.raises(ValueError, match=message):
            FastMatcher(**option)(outputs, targets)
        return
    matcher = FastMatcher()
    matches = matcher(outputs, targets)
    assert matches[1][0].tolist() == matches[1][1].tolist() == [0, 1, 2, 3, 4]
    for b in (0, 2):
        expected = FastMatcher()(good, good_targets)[b]
        assert torch.equal(matches[b][0].cpu(), expected[0])
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=message):
        check_faults() if when == "check" else matcher(on_gpu(good), on_gpu(good_targets))
    matcher(on_gpu(good), on_gpu(good_targets))


def test_a_fault_of_the_last_call_is_printed_when_the_process_ends(tmp_path) -> None:
    code = (
        "import torch\nfrom detr_fast import FastMatcher\n"
        "logits, boxes = torch.zeros(1, 4, 3), torch.full((1, 4, 4), 0.5)\n"
        "logits[0, 2] = torch.nan\n"
        "targets = [{'labels': torch.tensor([1]), 'boxes': torch.full((1, 4), 0.5)}]\n"
        "FastMatcher()({'pred_logits': logits.cuda(), 'pred_boxes': boxes.cuda()}, targets)\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "warning: outputs['pred_logits'][0, 2] has no" in done.stderr


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="float64, which only the CPU can match"):
        FastMatcher()(on_gpu(predictions(1, 5, dtype=torch.float64)), targets_of([2]))


# linear_sum_assignment


def costs_of(kind, rows, cols, random):
    x = random.random((rows, cols))
    if kind == "initial":
        return random.random((rows, 1)) + random.random((1, cols)) + 1e-3 * x
    if kind == "integers":
        return np.floor(4 * x)
    if kind == "forbidden":  # all but some, with which there is a way
        return np.where((x < 0.4) & ~np.eye(rows, cols, dtype=bool), np.inf, x)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "initial", "integers", "forbidden"])
@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 9), (40, 40), (100, 300), (300, 100), (300, 300), (20, 2000)]
)
def test_assignment_is_scipys(kind, shape, dtype) -> None:
    random = np.random.default_rng(5)
    cost = torch.from_numpy(np.stack([costs_of(kind, *shape, random) for _ in range(9)])).to(dtype)
    for maximize in (False, True):
        signed = -cost if maximize else cost
        rows, cols = linear_sum_assignment(signed.cuda(), maximize)
        for problem, i, j in zip(signed, rows.cpu(), cols.cpu(), strict=True):
            assert_scipys(problem, i, j, maximize)


@pytest.mark.parametrize("size", ["tiny", "small", "large", "huge"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_costs_of_any_size(dtype, size) -> None:
    """Rows that compete: their prices are multiples of the costs, and must not overflow."""
    row, col, noise = np.random.default_rng(3).random((3, 40, 90))
    cost = np.abs(3 * row[:, :1] - col[:1] - 1) + 0.01 * noise
    limits = torch.finfo(dtype)
    scale = {
        "tiny": 1e4 * limits.smallest_normal,
        "small": limits.tiny**0.5,
        "large": limits.max**0.5,
        "huge": limits.max / 4,
    }
    problem = torch.from_numpy(cost * scale[size]).to(dtype)
    rows, cols = linear_sum_assignment(problem.cuda())
    assert_scipys(problem, rows.cpu(), cols.cpu())


@pytest.mark.parametrize("spread", [20, 200, 2000])
def test_the_largest_costs_that_differ(spread) -> None:
    random = np.random.default_rng(spread)
    shape = (9, 20, 30)
    steps = random.integers(0, spread, shape) // 4 + random.integers(0, spread, (9, 1, 30))
    cost = torch.tensor(torch.finfo(torch.float32).max - steps * 2.0**104, dtype=torch.float32)
    cost[:, 3, 2:] = torch.inf
    for problem, i, j in zip(
        cost, *(x.cpu() for x in linear_sum_assignment(cost.cuda())), strict=True
    ):
        assert_scipys(problem, i, j)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_cost_and_forbidden_pairs(dtype) -> None:
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        cost = torch.rand(20, 30, generator=g).to(dtype)
        cost[:, 2:] = cost[:, 2:] * 0.01 + torch.rand(28, generator=g).to(dtype)
        cost[:2] = torch.inf
        cost[:2, :2] = torch.finfo(dtype).max
        cost[2:, :2] = torch.inf
        rows, cols = linear_sum_assignment(cost.cuda())
        assert sorted(cols[:2].tolist()) == [0, 1]
        assert_scipys(cost[2:, 2:], rows[2:].cpu() - 2, cols[2:].cpu() - 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40, 60), (60, 60), (20, 300)])
def test_costs_of_two_rows_hide_nothing_in_rows_with_far_smaller_ones(shape, dtype) -> None:
    """At prices that suit the first two rows, the digits of all others would be lost."""
    cost = 1e-20 * (1 + np.random.default_rng(0).random(shape))
    cost[:, :2] = 0.5e-20  # two cheapest ones, so that these rows have no gap
    cost[:2] = 1
    cost[:2, -1] = 0
    cost[0, -2] = 1e-20
    problem = torch.from_numpy(cost).to(dtype)
    rows, cols = linear_sum_assignment(problem.cuda())
    assert_scipys(problem, rows.cpu(), cols.cpu())


def assert_scipys(cost, i, j, maximize=False) -> None:
    """SciPy's indices, or where several assignments are the best another of these."""
    twin_i, twin_j = scipy_solve(cost.double(), maximize)
    assert i.tolist() == sorted(set(i.tolist())) and len(i) == len(twin_i)
    assert len(set(j.tolist())) == len(j)
    if (i.tolist(), j.tolist()) != (twin_i.tolist(), twin_j.tolist()):
        total, expected = (
            sum(map(Fraction, cost[pairs].tolist())) for pairs in ((i, j), (twin_i, twin_j))
        )
        assert total == expected


@pytest.mark.parametrize("shape", [(2000, 5, 9), (2000, 60, 20), (1500, 20, 400)], ids=str)
def test_many_small_problems(shape) -> None:
    """More than can run at once, several times over: blocks of few warps solve them."""
    costs = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    costs[::3] = (costs[::3] * 6).floor()
    rows, cols = linear_sum_assignment(costs.cuda())
    for cost, i, j in zip(costs, rows.cpu(), cols.cpu(), strict=True):
        assert_scipys(cost, i, j)


def test_ragged_assignments() -> None:
    random = np.random.default_rng(6)
    shapes = [
        (3, 8),
        (8, 3),
        (1, 1),
        (30, 300),
        (0, 5),
        (200, 10),
    ] * 90  # more than one launch takes
    costs = [torch.from_numpy(random.random(shape)).float() for shape in shapes]
    for cost, (i, j) in zip(costs, linear_sum_assignment([c.cuda() for c in costs]), strict=True):
        twin_i, twin_j = scipy_solve(cost)
        assert i.is_cuda and i.tolist() == twin_i.tolist() and j.tolist() == twin_j.tolist()


def test_assignment_faults() -> None:
    cost = torch.rand(4, 5, 7)
    bad = cost.clone()
    bad[2, 1, 3] = torch.nan
    with pytest.raises(ValueError, match=r"cost\[2\]: matrix contains invalid numeric entries"):
        linear_sum_assignment(bad.cuda())
    rows, cols = linear_sum_assignment(bad.cuda(), validate=False)
    assert rows[2].tolist() == cols[2].tolist() == [0, 1, 2, 3, 4]
    bad = cost.clone()
    bad[3, 4] = torch.inf
    with pytest.raises(ValueError, match=r"cost\[3\]: cost matrix is infeasible"):
        linear_sum_assignment(bad.cuda())
    for empty in (torch.empty(0, 3), torch.empty(0, 4, 5)):
        assert linear_sum_assignment(empty.cuda())[0].numel() == 0


def test_assignment_does_not_wait(request) -> None:
    cost = torch.rand(8, 20, 50, device="cuda")
    expected = linear_sum_assignment(cost)[1]
    request.getfixturevalue("waits_are_errors")
    found = linear_sum_assignment(cost, validate=False)[1]
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)
