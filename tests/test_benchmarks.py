"""The benchmarks run, and what the README says of them is what the committed rows say."""

import csv
import multiprocessing
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import bench_gpu, bench_train_step, step_contenders, tables
from benchmarks.failures import Failures
from benchmarks.gpu_names import COMPILED, EAGER, GRAPHED, PUBLISHED
from benchmarks.harness import read_csv, write_csv
from benchmarks.scaling_model import ASSUMED, all_reduce_seconds
from benchmarks.step_contenders import CONTENDERS, Case

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
# The checkout goes last on the path: its detr_fast may not be the installed one, which has to win.
START = f"""
import runpy, sys
sys.path.append({str(ROOT)!r})
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run(folder: Path, module: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", START, f"benchmarks.{module}", *map(str, args)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[Path, str]:
    """A folder with the rows of both benchmarks' short forms, and what the solvers' one printed."""
    folder = tmp_path_factory.mktemp("quick")
    said = run(folder, "bench_assignment", "--quick", "--out", "assignment_cpu.csv")
    run(folder, "bench_matcher", "--quick", "--out", "matcher_cpu.csv")
    return folder, said


def test_assignment_rows(quick):
    folder, said = quick
    rows = rows_of(folder / "assignment_cpu.csv")
    timed = {row["variant"] for row in rows if row["p50_us"]}
    assert {"detr_fast", "SciPy"} <= timed
    for rival in ("lap", "lapx", "torch-linear-assignment"):
        assert (rival in timed) != (f"{rival} is not installed: left out" in said)
    assert {row["set"] for row in rows} == {"headline", "queries", "targets", "problems"}
    for row in rows:
        assert float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        assert row["form"] and int(row["calls"]) >= 3
        if row["variant"] in ("lap", "lapx", "torch-linear-assignment"):
            assert row[row["variant"]], "no version"
    assert {row["threads"] for row in rows if row["set"] == "problems"} == {"1", "2"}


def test_missing_rivals_are_left_out(tmp_path):
    """Without the packages that share a name, whatever this environment has of them."""
    hide = "import importlib.metadata as m; d = m.distributions\n"
    hide += "m.distributions = lambda **k: [x for x in d(**k) if k.get('name', '')[:3] != 'lap']\n"
    done = subprocess.run(
        [
            *(sys.executable, "-c", hide + START, "benchmarks.bench_assignment", "--quick"),
            *("--sets", "headline", "--rivals", str(tmp_path)),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "lap is not installed: left out" in done.stdout
    assert "lapx is not installed: left out" in done.stdout
    assert "detr_fast" in done.stdout and "lapjv" not in done.stdout


def test_matcher_rows(quick):
    rows = rows_of(quick[0] / "matcher_cpu.csv")
    sets = {"fixed", "sizes", "queries", "targets", "layers", "bfloat16"}
    assert {row["set"] for row in rows} == sets
    case = ("set", "family", "images", "queries", "targets", "layers", "dtype", "threads")
    floors = {
        tuple(row[key] for key in case): float(row["p50_us"])
        for row in rows
        if row["variant"].startswith("floor")
    }
    for row in rows:
        ratio = float(row["p50_us"]) / floors[tuple(row[key] for key in case)]
        assert float(row["times_floor"]) == pytest.approx(ratio, abs=0.01)
        if row["variant"] == "FastMatcher":
            assert float(row["excess"]) < 1e-4


@pytest.mark.parametrize("source", ["committed", "quick"])
def test_pictures(source, quick, tmp_path):
    folder = RESULTS if source == "committed" else quick[0]
    run(tmp_path, "plot", folder, "--out", tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in RESULTS.glob("*_cpu.png")}
    assert all((tmp_path / name).stat().st_size > 10_000 for name in drawn)


def test_readme_tables_are_those_of_the_rows(tmp_path):
    copy = shutil.copy(ROOT / "README.md", tmp_path)
    run(tmp_path, "tables", RESULTS, "--write", copy)
    assert Path(copy).read_text() == README


def test_loader_rows(voc_folder, coco_files, tmp_path):
    images, truth = coco_files
    options = ["--quick", "--workers", "0", "--coco", f"coco:{images}:{truth}"]
    run(tmp_path, "bench_loader", *options, "--voc", f"voc:{voc_folder}", "--out", "loader.csv")
    rows = rows_of(tmp_path / "loader.csv")
    assert {row["set"] for row in rows} == {"coco", "photos", "small"}
    assert {row["set"] for row in rows if row["variant"] == "published loader"} == {
        *("coco", "photos")
    }
    for row in rows:
        rate = float(row["images"]) * 1e6 / float(row["p50_us"])
        assert float(row["images_per_second"]) == pytest.approx(rate, abs=0.06)


def test_scaling_tables_are_those_of_the_model(tmp_path):
    text = (ROOT / "benchmarks" / "SCALING.md").read_text()
    copy = shutil.copy(ROOT / "benchmarks" / "SCALING.md", tmp_path)
    run(tmp_path, "scaling_model", "--write", copy, "--results", RESULTS)
    assert Path(copy).read_text() == text


def test_all_reduce_of_the_scaling_model():
    """By hand: 8 GPUs, 7/4 of 160 MB at 200 GB/s; two machines add 1/8 of it at 20 GB/s."""
    assert all_reduce_seconds(160e6, 1, ASSUMED) == 0
    inside = 1.75 * 160e6 / 200e9 + 14 * 5e-6
    assert all_reduce_seconds(160e6, 8, ASSUMED) == pytest.approx(inside)
    both = inside + 20e6 / 20e9 + 2 * 15e-6
    assert all_reduce_seconds(160e6, 16, ASSUMED) == pytest.approx(both)


def test_readme_numbers_have_a_row():
    """Read back from the README without the code that wrote it there."""
    kinds = {"untrained": "initial", "random": "random", "trained": "trained"}
    found = 0
    for name, want in (
        ("assignment", {"set": "headline", "dtype": "float32", "threads": "1"}),
        ("matcher", {"set": "sizes", "layers": "6", "threads": "2"}),
    ):
        rows = rows_of(RESULTS / f"{name}_cpu.csv")
        table = re.search(rf"<!-- {name} -->\n(.*?)<!-- end {name} -->", README, re.DOTALL)[1]
        head, _, *lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
        for size, kind, *cells in lines:
            numbers = re.findall(r"\d+", size)
            columns = ("images", "queries", "targets") if name == "matcher" else ("queries",)
            wanted = want | {"family": kinds[kind]} | dict(zip(columns, numbers, strict=False))
            mine = {
                row["variant"].split(":")[0]: row
                for row in rows
                if all(row[key] == value for key, value in wanted.items())
            }
            for title, cell in zip(head[2:], cells, strict=True):
                title = "floor" if title in ("numpy.min", "torch.exp") else title
                if title in mine:
                    shown, row = cell.strip("*"), mine[title]
                    if shown == "-":
                        assert not row["p50_us"]
                        continue
                    digits = len(shown.partition(".")[2])
                    assert abs(float(row["p50_us"]) / 1000 - float(shown)) <= 0.51 * 10**-digits
                    found += 1
                else:
                    assert title == "next best / detr_fast"
                    others = [
                        r
                        for v, r in mine.items()
                        if v not in ("detr_fast", "floor") and r["p50_us"]
                    ]
                    best = min(float(row["p50_us"]) for row in others)
                    ratio = best / float(mine["detr_fast"]["p50_us"])
                    assert abs(ratio - float(cell)) <= 0.051
    assert found >= 4 * 5 + 8 * 4 - 4


def test_what_the_readmes_say_of_steps_is_in_the_rows():
    """Ratios to the published formula, outside of the generated tables."""
    speed = {}
    for folder in (RESULTS, RESULTS / "zen4"):
        for row in rows_of(folder / "train_step_cpu.csv"):
            key = folder.name, row["precision"], row["allocator"], row["variant"]
            speed[key] = float(row["images_per_second"])
    published = {
        (folder, precision, allocator): value
        for (folder, precision, allocator, variant), value in speed.items()
        if variant == PUBLISHED
    }
    ratios = {
        (folder, precision, over): speed[folder, precision, "kept", COMPILED]
        / published[folder, over, "kept"]
        for folder in ("results", "zen4")
        for precision, over in (
            ("float32", "float32"),
            ("bf16 autocast", "bf16 autocast"),
            ("bf16 autocast", "float32"),
        )
    }
    words = " ".join(README.split())
    said = re.search(r"give ([\d.]+)x the published formula in float32 and ([\d.]+)x", words)
    assert float(said[1]) == pytest.approx(ratios["zen4", "float32", "float32"], abs=0.006)
    assert float(said[2]) == pytest.approx(
        ratios["zen4", "bf16 autocast", "bf16 autocast"], abs=0.006
    )
    page = (RESULTS.parent / "README.md").read_text()
    for precision, over, row in (
        ("float32", "float32", "in float32"),
        ("bf16 autocast", "float32", "float32 formula"),
    ):
        line = next(line for line in page.splitlines() if line.startswith("|") and row in line)
        for cell, folder in zip(line.split("|")[2:4], ("results", "zen4"), strict=True):
            wanted = ratios[folder, precision, over]
            assert float(cell.strip(" x*")) == pytest.approx(wanted, abs=0.006)


def test_committed_rows_can_be_repeated():
    for name in ("assignment", "matcher", "loader", "train_step"):
        rows = rows_of(RESULTS / f"{name}_cpu.csv")
        assert rows
        for row in rows:
            assert row["command"].startswith(f"python -m benchmarks.bench_{name}")
            assert row["command"].endswith(f" --out benchmarks/results/{name}_cpu.csv")
            assert row["commit"] and row["seed"] and row["torch"] and row["scipy"] and row["cpu"]
            assert name != "loader" or row["pillow"]
            figure = row["step_ms" if name == "train_step" else "p50_us"]
            assert figure or row["note"].startswith("left out: ")


def test_committed_training_steps_are_those_of_their_command():
    for row in rows_of(RESULTS / "train_step_cpu.csv"):
        args = bench_train_step.parser().parse_args(shlex.split(row["command"])[3:])
        assert row["seed"] == str(args.seed) and row["model"] == args.model
        assert (int(row["height"]), int(row["width"])) == tuple(args.size)
        assert int(row["batch"]) == args.batch and int(row["torch_threads"]) == args.threads
        assert row["allocator"] in args.allocators


def case_on(device: str) -> Case:
    return Case("resnet18", (64, 64), 1, "none", False, seed=0, device=torch.device(device))


def test_training_steps_in_processes_of_their_own():
    failures = Failures()
    rows, contenders = bench_train_step.run_case(
        case_on("cpu"), [PUBLISHED, "none of them", EAGER], ["kept"], 0.1, failures
    )
    assert [row["variant"] for row in rows] == [PUBLISHED, EAGER] and not contenders
    for row in rows:
        assert row["calls"] >= 5 and row["peak_mb"] > 100
        assert row["page_faults"] < 3000  # with the default allocator 4000 at least
        assert row["peak_mb_per_image"] == row["peak_mb"]
        assert 0 < row["forward_ms"] < row["step_ms"]
    (failure,) = failures.lines
    assert failure.startswith("FAILED resnet18, 1 images of 64x64, none, none of them: ")
    assert not multiprocessing.active_children()
    assert "| float32 |" in tables.step_table([{k: str(v) for k, v in r.items()} for r in rows])


class Memory:
    """Of a GPU, in MiB, as torch counts it."""

    def __init__(self, monkeypatch) -> None:
        self.now = self.peak = 7  # something is there already
        for name, value in {
            "memory_allocated": lambda: self.now * 2**20,
            "max_memory_allocated": lambda: self.peak * 2**20,
            "reset_peak_memory_stats": self.reset,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def reset(self) -> None:
        self.peak = self.now

    def take(self, size: int, for_good: bool) -> None:
        self.peak = max(self.peak, self.now + size)
        self.now += size if for_good else 0


@pytest.fixture
def contenders(monkeypatch):
    """Stand-ins that keep 10, 20 ... MiB and take ten times as much in each step; what they did."""
    memory, done = Memory(monkeypatch), []
    names = (PUBLISHED, "off", "fails later", "fails", EAGER)

    class Contender:
        def __init__(self, case: Case, name: str) -> None:
            self.name, self.size = name, 10 * (1 + names.index(name))
            done.append(("made", name))
            memory.take(self.size, True)
            self.calls = 0

        def total(self) -> float:
            return 2.0 if self.name == "off" else 1.0

        def timed(self, steps: int) -> dict[str, float]:
            self.calls += 1
            if self.name == "fails" or (self.name == "fails later" and self.calls == 3):
                raise RuntimeError(self.name)
            memory.take(10 * self.size, False)
            done.append(("timed", self.name))
            return {"forward": 1e-3}

        def step(self) -> None:
            done.append(("step", self.name))

    made = {name: lambda case, name=name: Contender(case, name) for name in names}
    monkeypatch.setattr(bench_train_step, "CONTENDERS", made)
    monkeypatch.setattr(bench_train_step, "_load_libraries", lambda case: None)
    return done


FAILED = [
    "FAILED resnet18, 1 images of 64x64, none, fails: RuntimeError: fails",
    "FAILED resnet18, 1 images of 64x64, none, off: AssertionError: has loss 2.0, "
    "published formula 1.0",
    "FAILED resnet18, 1 images of 64x64, none, fails later: RuntimeError: fails later",
]


def test_contenders_on_a_gpu_are_made_once_and_fail_alone(contenders):
    failures = Failures()
    names = [PUBLISHED, "off", "fails later", "fails", EAGER]
    rows, running = bench_train_step.run_case(case_on("cuda"), names, ["kept"], 0.01, failures)
    assert [name for what, name in contenders if what == "made"] == names
    # Its own memory and that of its steps, whatever the others keep.
    assert [(row["variant"], row["peak_mb"]) for row in rows] == [(PUBLISHED, 110), (EAGER, 550)]
    assert all(row["host_waits"] == "" and row["forward_ms"] == 1 for row in rows)
    assert set(running) >= {PUBLISHED, EAGER}
    assert failures.lines == FAILED


def test_without_the_published_step_the_others_still_have_rows(contenders):
    rows, _ = bench_train_step.run_case(case_on("cuda"), [EAGER], [], 0.01, Failures())
    assert [(row["variant"], row["speedup_to_published"]) for row in rows] == [(EAGER, "")]
    bench_train_step.show(rows)


def test_training_steps_are_written_after_each_case_and_profiled_last(
    contenders, monkeypatch, tmp_path
):
    written = []

    def write(path: Path, rows: list[dict]) -> None:
        written.append([row["host_waits"] for row in rows])

    def waits(step) -> int:
        step()
        if [what for what, _ in contenders].count("step") == 2:
            raise RuntimeError("no profiler")
        return 2

    monkeypatch.setattr(bench_train_step, "write_csv", write)
    monkeypatch.setattr(bench_train_step, "waits", waits)
    monkeypatch.setitem(bench_train_step.IMPOSSIBLE, "cuda", ("off", "fails", "fails later"))
    options = ["--device", "cuda", "--amp", "none", "bf16", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", ["bench_train_step", *options, "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as ended:
        bench_train_step.main()
    assert ended.value.code == 1
    last_timed = max(k for k, (what, _) in enumerate(contenders) if what == "timed")
    first_step = min(k for k, (what, _) in enumerate(contenders) if what == "step")
    assert last_timed < first_step
    assert written[:2] == [["", ""], ["", "", "", ""]]
    # Ours first, of both precisions; the second of all failed.
    assert written[-1] == [2, 2, 2, ""]


@pytest.fixture
def time_assignments(monkeypatch, tmp_path):
    """Runs bench_gpu for assignments as if there were a GPU, given what stands for its timing."""
    for name in ("is_available", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    monkeypatch.setattr(bench_gpu, "environment_info", lambda seed: {})
    monkeypatch.setattr(bench_gpu, "bandwidth", lambda: 4e12)
    options = ["--quick", "--sets", "assignment", "--out", str(tmp_path / "gpu.csv")]
    monkeypatch.setattr(sys, "argv", ["bench_gpu", *options])

    def main(run: Callable, code: int) -> None:
        monkeypatch.setattr(bench_gpu, "run", run)
        with pytest.raises(SystemExit) as ended:
            bench_gpu.main()
        assert ended.value.code == code

    return main


OLDER_ROWS = [{"what": bench_gpu.MATCHING, "x": "1"}, {"what": bench_gpu.ASSIGNMENT, "x": "2"}]


def test_rows_of_other_sets_are_kept(time_assignments, tmp_path):
    """A second call for another kind of problems adds its rows, and what older ones are without."""

    def run(cases, rounds, failures, write) -> list[dict]:
        titles = [title for title, _ in cases]
        assert len(titles) == 5 and all(title.startswith("assignment") for title in titles)
        write([{"what": bench_gpu.ASSIGNMENT, "x": "3", "queued": 5}])
        return []

    write_csv(tmp_path / "gpu.csv", OLDER_ROWS)
    time_assignments(run, code=0)
    rows = rows_of(tmp_path / "gpu.csv")
    assert [(row["what"], row["x"], row["queued"], row["gpu"]) for row in rows] == [
        (bench_gpu.MATCHING, "1", "", ""),
        (bench_gpu.ASSIGNMENT, "3", "5", "True"),
    ]


@pytest.mark.parametrize("older", [OLDER_ROWS, OLDER_ROWS[1:]])
def test_where_every_case_fails_no_earlier_row_of_it_stays(time_assignments, tmp_path, older):
    def run(cases, rounds, failures, write) -> list[dict]:
        failures.add("all of them", RuntimeError("no kernel"))
        return []

    write_csv(tmp_path / "gpu.csv", older)
    time_assignments(run, code=1)
    assert read_csv(tmp_path / "gpu.csv") == older[:-1]


def test_without_a_row_nothing_is_written(tmp_path):
    write_csv(tmp_path / "x.csv", [])
    assert not list(tmp_path.iterdir())
    assert read_csv(tmp_path / "x.csv") == read_csv(None) == []


@pytest.mark.parametrize("name", [EAGER, COMPILED, GRAPHED])
def test_a_clock_is_called_in_steps_that_can_be_divided(monkeypatch, name):
    """A CUDA graph would capture the clock's events, which nobody could read then."""
    monkeypatch.setattr(step_contenders, "GraphedStep", lambda step, capacity: step)
    contender = CONTENDERS[name](case_on("cpu"))
    assert ("match_packed" in vars(contender.criterion.matcher)) == (name == EAGER)
