"""How a GPU is timed and its waits are counted, on a GPU that is made of two clocks."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import bench_gpu, gpu_profile, gpu_timing
from benchmarks.cases import FAMILIES, Case
from benchmarks.failures import Failures
from benchmarks.gpu_assignment import NEW_BATCHES, assignment, new_sizes, ragged
from benchmarks.gpu_boxes import box_ious, loss_variants, losses
from benchmarks.gpu_names import IOU, LOSSES, SOLVER
from benchmarks.gpu_profile import blocking_calls, by_kernel
from benchmarks.gpu_timing import Problem, measure, rows_of


class Gpu:
    """A host and a stream, each with a clock in microseconds."""

    def __init__(self) -> None:
        self.host = self.stream = 0.0
        self.cycles_per_us = 1980.0

    def launch(self, host_us: float, gpu_us: float) -> None:
        self.host += host_us
        self.stream = max(self.stream, self.host) + gpu_us

    def synchronize(self) -> None:
        self.host = max(self.host, self.stream)

    def sleep(self, cycles: int) -> None:
        self.launch(5, cycles / self.cycles_per_us)

    def event(self, enable_timing: bool) -> "Event":
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def record(self) -> None:
        self.gpu.launch(2, 0)
        self.at = self.gpu.stream

    def query(self) -> bool:
        return self.at <= self.gpu.host

    def elapsed_time(self, end: "Event") -> float:
        return (end.at - self.at) / 1e3


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    made = Gpu()
    cache = SimpleNamespace(fill_=lambda _: made.launch(5, 100))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: cache)
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", made.sleep)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(gpu_timing, "time", SimpleNamespace(perf_counter=lambda: made.host / 1e6))
    return made


def test_time_of_the_gpu_leaves_out_a_slow_host(gpu) -> None:
    """Ten kernels of 3 us, each launched in 200: the host takes 2 ms."""

    def call(_: int) -> None:
        for _ in range(10):
            gpu.launch(200, 3)

    failures = Failures()
    figures = measure({"slow host": call}, 7, "a case", failures)["slow host"]
    assert figures["gpu_us"] == pytest.approx(30)
    assert figures["host_us"] == pytest.approx(2000)
    assert figures["calls"] == figures["queued"] == 7
    assert not failures.lines


def test_a_call_that_the_gpu_had_to_wait_for_is_not_counted_as_queued(gpu) -> None:
    def waiting(_: int) -> None:
        gpu.launch(20, 30)
        gpu.synchronize()
        gpu.launch(20, 30)

    def late(number: int) -> None:  # now and then the host is slower than it was in the warm-up
        gpu.launch(5000 if number == 5 else 50, 30)

    figures = measure({"waiting": waiting, "late": late}, 10, "", Failures())
    assert (figures["waiting"]["queued"], figures["late"]["queued"]) == (0, 9)
    assert figures["late"]["gpu_us"] == pytest.approx(30)


def test_a_hold_has_a_limit(gpu) -> None:
    measure({"slow": lambda _: gpu.launch(1e6, 30)}, 1, "", Failures())
    assert gpu.host < 8.1e6  # 7 calls, and what the GPU was held for


def test_what_is_slow_is_called_a_few_times_only(gpu) -> None:
    """Nothing is slow because it compiles at its first call, or for a size that it has not seen."""
    compiled = set()

    def compiles(number: int) -> None:
        gpu.launch(5 if number % 8 in compiled else 1e6, 30)
        compiled.add(number % 8)

    def waits(_: int) -> None:
        gpu.launch(20, 15_000)
        gpu.synchronize()

    figures = measure({"compiles": compiles, "waits": waits}, 30, "", Failures())
    assert (figures["compiles"]["calls"], figures["waits"]["calls"]) == (30, 5)
    assert figures["compiles"]["gpu_us"] == pytest.approx(30)
    assert figures["waits"]["host_us"] == pytest.approx(15_020)


def problem(**variants) -> Problem:
    return Problem("a case", {"what": "this"}, variants, lambda results: {}, lambda: 11)


def test_a_variant_that_fails_is_reported_and_the_others_are_timed(gpu, capsys) -> None:
    def at_once(_: int) -> None:
        raise RuntimeError("no kernel\nmore")

    def later(number: int) -> None:
        if number == 6:
            raise ValueError("late")
        gpu.launch(5, 10)

    def good(_: int) -> int:
        gpu.launch(5, 10)
        return 3

    def wrong(_: int) -> int:
        return 4

    case = Problem(
        "a case",
        {"what": "this"},
        {"at once": at_once, "later": later, "wrong": wrong, "good": good},
        lambda results: {name: f"is {x}" for name, x in results.items() if x == 4},
        lambda: 0,
    )
    failures = Failures()
    (row,) = rows_of(case, 10, failures)
    assert row["variant"] == "good" and row["calls"] == 10 and row["waits"] == ""
    assert failures.lines == [
        "FAILED a case, at once: RuntimeError: no kernel",
        "FAILED a case, wrong: AssertionError: is 4",
        "FAILED a case, later: ValueError: late",
    ]
    with pytest.raises(SystemExit) as ended:
        failures.stop()
    assert ended.value.code == 1 and "3 failed" in capsys.readouterr().out


def test_nothing_is_profiled_or_counted_before_everything_is_timed(monkeypatch) -> None:
    done, written = [], []

    def timed(case: Problem, rounds: int, failures: Failures) -> list[dict]:
        done.append("time")
        row = {"gpu_us": 1.0, "host_us": 1.0, "queued": 3, "calls": 3, "waits": "", "steps": ""}
        return [{"variant": name, **row} for name in case.variants]

    def waits(call) -> int:
        done.append("waits")
        return call()

    def broken() -> Problem:
        raise MemoryError("too large")

    monkeypatch.setattr(bench_gpu, "rows_of", timed)
    monkeypatch.setattr(bench_gpu, "waits", waits)
    monkeypatch.setattr(
        bench_gpu, "waits_and_kernels", lambda call: (done.append("both") or call(), "a 1.0")
    )
    failures = Failures()
    cases = [
        ("first", lambda: problem(a=lambda k: 2, b=lambda k: 1 / k)),
        ("broken", broken),
        ("last", lambda: problem(**{SOLVER: lambda k: 5})),
    ]
    write = lambda rows: written.append([(row["waits"], row["steps"]) for row in rows])  # noqa: E731
    rows = bench_gpu.run(iter(cases), 3, failures, write)
    # First of ours, and the kernels of ours alone.
    assert done == ["time"] * 2 + ["both"] + ["waits"] * 2
    assert [(row["variant"], row["waits"], row.get("kernels"), row["steps"]) for row in rows] == [
        ("a", 2, None, 11),
        ("b", "", None, 11),
        (SOLVER, 5, "a 1.0", 11),
    ]
    assert failures.lines == [
        "FAILED broken: MemoryError: too large",
        "FAILED waits of a case, b: ZeroDivisionError: division by zero",
    ]
    none = ("", "")
    assert written == [
        [none, none],
        [none, none, none],
        [none, none, none],
        [none, none, (5, "")],
        [(2, ""), none, (5, "")],
        [(2, ""), none, (5, "")],
        [(2, 11), ("", 11), (5, "")],
        [(2, 11), ("", 11), (5, 11)],
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_compared_is_right_and_what_is_wrong_is_found(family) -> None:
    cases = [
        (bench_gpu.matching(Case(family, 2, 30, 7, 40, layers=2), 0, "cpu"), 4),
        (assignment(family, 5, 30, 6, 0, "cpu"), 3),
        (ragged(family, 0, "cpu", images=1), 1),
        (losses(Case(family, 2, 30, 7, 6, layers=2), 0, "cpu"), 2),
        (box_ious(0, "cpu", images=2), 2),
    ]
    for case, least in cases:
        results = {name: call(0) for name, call in case.variants.items()}
        assert len(results) >= least and case.wrong(results) == {}
        name = next(iter(results))
        others = {"other batch": case.variants[name](1), **results}
        searches = case.about["what"] not in (LOSSES, IOU)  # these have one batch only
        if searches:
            assert list(case.wrong(others)) == ["other batch"]
        assert case.wrong({}) == {}
        if family != "trained":  # there the cheapest columns may be all different
            assert (case.steps() > 0) == searches


def test_each_call_has_a_largest_target_count_of_its_own() -> None:
    case = new_sizes("random", 0, "cpu", images=2)
    calls = 1 + 5 + 2 * case.rounds  # checked, warmed up, timed
    assert calls <= NEW_BATCHES
    for call in case.variants.values():
        first = call(0)
        found = [first, *(call(0) for _ in range(calls - 1))]
        sizes = {x.shape[1] if isinstance(x, torch.Tensor) else len(x[0][0]) for x in found}
        assert len(sizes) == calls
        assert list(case.wrong({"first": first, "last": found[-1]})) == ["last"]


def test_pairs_that_are_missing_or_twice_are_found() -> None:
    case = bench_gpu.matching(Case("random", 2, 30, 7, 6, layers=2), 0, "cpu")
    layers = case.variants["FastMatcher, lists"](0)
    (i, j) = layers[1][0]
    for pairs in ((i[1:], j[1:]), (i[:1].expand_as(i), j)):
        spoilt = [layers[0], [pairs, *layers[1][1:]]]
        assert list(case.wrong({"good": layers, "spoilt": spoilt})) == ["spoilt"]


def test_wrong_gradients_are_found() -> None:
    case = losses(Case("random", 2, 30, 7, 6, layers=2), 0, "cpu")
    results = {name: call(0) for name, call in case.variants.items()}
    results["box_losses"] = results["box_losses"] * 1.01
    assert list(case.wrong(results)) == ["box_losses"]


@pytest.mark.parametrize("family", ["initial", "trained"])
def test_compared_losses_have_the_same_gradient(family) -> None:
    variants = loss_variants(Case(family, 3, 30, 7, 6, layers=2), 0, "cpu")
    ours, theirs = (call(0) for call in variants.values())
    assert ours.abs().sum() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_waits_leave_out_the_profilers_own() -> None:
    calls = {"cudaLaunchKernel": 9, "cudaStreamSynchronize": 2, "cudaMemcpyAsync": 4}
    assert blocking_calls(calls, {}) == 2
    own = {"cudaDeviceSynchronize": 2, "cudaStreamSynchronize": 1}
    assert blocking_calls({**calls, "cudaDeviceSynchronize": 3, "cudaMemcpy": 1}, own) == 3
    assert blocking_calls({}, own) == 0


def test_times_of_kernels() -> None:
    records = {  # of 20 calls, of which some records are lost
        "void detr_fast::cuda::(anonymous namespace)::match_problems<true>(detr_fast::X)": (90, 18),
        "detr_fast::cuda::(anonymous namespace)::pair_costs(detr_fast::cuda::Layers)": (78, 39),
        "void detr_fast::cuda::(anonymous namespace)::match_problems<false>(int)": (0.5, 1),
        "void at::native::vectorized_elementwise_kernel<4, at::native::Add>(int)": (9, 20),
    }
    assert by_kernel(records, 20) == {"match_problems": 5.5, "pair_costs": 4.0}


@pytest.fixture
def profiled(monkeypatch):
    """A profiler that waits twice itself, and shows the waits of a call that says what it does."""
    gpu_profile._profiler.cache_clear()
    shown = {"works": True, "waits": 0, "sessions": 0}

    def call(waits: int = 1) -> int:
        shown["waits"] += waits
        return waits

    shown["call"] = call

    def events(call) -> list:
        shown["sessions"] += 1
        waits = shown["waits"]
        call()
        kernel = "void detr_fast::cuda::assign_problem(int)"
        count = shown["waits"] - waits if shown["works"] else 0
        return [
            SimpleNamespace(key="cudaDeviceSynchronize", count=2, device_type=DeviceType.CPU),
            SimpleNamespace(key="cudaStreamSynchronize", count=count, device_type=DeviceType.CPU),
            SimpleNamespace(
                key=kernel, count=5, device_type=DeviceType.CUDA, self_device_time_total=15
            ),
        ]

    monkeypatch.setattr(gpu_profile, "_events", events)
    number = SimpleNamespace(item=call)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: number)
    yield shown
    gpu_profile._profiler.cache_clear()


def test_waits_of_a_call(profiled) -> None:
    call = profiled["call"]
    assert gpu_profile.waits(lambda: call(3)) == 3 and gpu_profile.waits(lambda: 0) == 0
    assert gpu_profile.waits_and_kernels(lambda: call(2), calls=6) == (2, "assign_problem 3.0")
    assert profiled["sessions"] == 3 + 3  # of them the profiler's own once


def test_a_profiler_that_shows_nothing_is_not_taken_for_no_wait(profiled) -> None:
    profiled["works"] = False
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shows no wait"):
            gpu_profile.waits(lambda: 0)
    assert profiled["sessions"] == 3
