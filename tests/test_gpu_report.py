"""The report of what ran on a GPU, as far as none is needed: steps, limits, failures, the page."""

import csv
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import bench_gpu, bench_train_step, child, gpu_page, gpu_report
from benchmarks.cases import FAMILIES
from benchmarks.checkout import ROOT, commit
from benchmarks.gpu_goals import CASES, INCOMPLETE, MET, MISSED, NO_ROWS, STEP_CASE, goals
from benchmarks.gpu_names import (
    ASSIGNMENT,
    BOX_LOSSES,
    COMPILED,
    EAGER,
    LOSSES,
    MATCHING,
    NEW_SIZES,
    PACKED,
    PUBLISHED,
    PUBLISHED_LOSSES,
    RAGGED,
    SOLVER,
    TORCH_ASSIGNMENT,
    TRANSFORMERS,
)
from benchmarks.gpu_page import Result
from benchmarks.gpu_plot import draw
from benchmarks.gpu_report import Step
from benchmarks.harness import write_csv
from detr_fast import _C

ROWS = [
    {
        "what": what,
        "family": family,
        "problems": "96",
        "queries": "300",
        "targets": "100",
        "variant": variant,
        "gpu_us": str(10.0 * k + 5),
        "host_us": "7",
        "calls": "30",
        "queued": "29",
        "waits": "0",
        "bytes": "4000000",
        "steps": "50",
        "gpu": "a GPU",
        "cuda": "13.0",
        "torch": "2.11",
        "commit": "abc",
        "command": "python -m benchmarks.bench_gpu",
        "kernels": "match_problems 3.0",
        "torch_linear_assignment": "",
        "copy_gb_per_s": "4000",
    }
    for what in ("matching", "assignment")
    for family in ("initial", "trained")
    for k, variant in enumerate(("FastMatcher, packed", "theirs"))
]


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


@pytest.fixture
def report(monkeypatch, tmp_path):
    """Runs the report with these steps, on a GPU that is said to be there; gives its page."""
    monkeypatch.setattr(gpu_report, "present_gpu", lambda: ("9.0", "a GPU"))
    monkeypatch.setattr(gpu_report, "START", time.monotonic())
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*steps: Step, code: int | str = 0, options: tuple[str, ...] = ()) -> str:
        monkeypatch.setattr(gpu_report, "steps", lambda *_: list(steps))
        monkeypatch.setattr(sys, "argv", ["gpu_report", "--out", str(tmp_path), *options])
        with pytest.raises(SystemExit) as ended:
            gpu_report.main()
        assert ended.value.code == code
        return (tmp_path / "report.md").read_text()

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the report itself runs")
def test_without_a_gpu_it_says_so(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_report", "--out", str(tmp_path / "report")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "nothing was run" in done.stderr
    assert not (tmp_path / "report").exists()


def test_a_step_that_fails_is_reported_and_the_others_run(report, tmp_path) -> None:
    page = report(
        Step("build", "Good", 1, python("print('fine')")),
        Step("tests", "Bad", 1, python("print('FAILED x::y - why'); print(1); exit(3)")),
        Step("bench", "Missing", 1, ("/no/such/program",)),
        Step("train", "Idle", 1, python("print('0 tests')"), r"\d+ passed"),
        Step("sanitizer", "Last", 1, python("print('5 passed')"), r"\d+ passed"),
        code=1,
    )
    assert re.search(r"\| Good \| ok, \d+ s; fine \|", page)
    assert re.search(r"\| Bad \| exit 3, \d+ s; 1 \|", page)
    assert "| Missing | not started: [Errno 2] No such file" in page
    assert "| Idle | did not say that it did its work, " in page
    assert "| Last | ok, " in page
    assert "### What failed\n\n```\nFAILED x::y - why\n```" in page
    assert "a GPU, compute capability 9.0, commit" in page
    log = (tmp_path / "log.txt").read_text()
    assert "=== Good" in log and "\nfine\n" in log and "=== Last" in log


def test_all_well_ends_with_0(report) -> None:
    assert "What failed" not in report(Step("build", "Good", 1, python("print(1)")))


def test_groups_are_chosen(report, capsys) -> None:
    both = Step("build", "A", 1, python("")), Step("bench", "B", 1, python(""))
    page = report(*both, options=("--only", "bench,tests"))
    assert "| B |" in page and "| A |" not in page
    report(*both, code=2, options=("--only", "benches"))
    assert "--only benches: choose from build,tests,bench" in capsys.readouterr().err


def test_an_earlier_report_is_not_mixed_with_this_one(report, tmp_path) -> None:
    write_csv(tmp_path / "gpu.csv", ROWS)
    (tmp_path / "mine.txt").write_text("kept")
    report(Step("build", "Old", 1, python("")))
    page = report(Step("build", "Good", 1, python("")))
    assert "FastMatcher" not in page and "Old" not in page
    assert "Old" not in (tmp_path / "log.txt").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "log.txt", "mine.txt"}


def test_several_calls_make_one_report(report, monkeypatch, tmp_path) -> None:
    """Each with some groups; what ran again replaces what it was, of its own group alone."""
    fails = python("print('FAILED x::y - 1 --> 2 | 3'); exit(1)")
    steps = (
        Step("tests", "GPU tests", 1, fails),
        Step("bench", "Rows", 1, python(f"open({str(tmp_path / 'gpu.csv')!r}, 'w').write('a')")),
        Step("train", "Step", 1, python("print('trained')")),
    )
    monkeypatch.setenv("DETR_FAST_COMMIT", "one")
    report(*steps, code=1)
    (tmp_path / "train_step_graph.csv").write_text("a")
    monkeypatch.setenv("DETR_FAST_COMMIT", "two")
    page = report(*steps, options=("--only", "train"))
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "log.txt", "gpu.csv"}
    first, second = re.split(r"^## a GPU, .*, commit two\.$", page, flags=re.MULTILINE)
    assert "commit one." in first and "| GPU tests | exit 1, " in first and "| Rows | ok" in first
    assert "```\nFAILED x::y - 1 --> 2 | 3\n```" in first and "| Step |" not in first
    assert "| Step | ok, " in second and "commit one." not in second.partition("<!--")[0]
    log = (tmp_path / "log.txt").read_text()
    assert log.count("=== Rows") == 1 and log.count("=== Step") == 2 and "commit two." in log

    monkeypatch.setattr(gpu_report, "START", time.monotonic() - 1000)
    page = report(*steps, code=1, options=("--only", "tests,bench"))
    assert "FAILED" not in page and "commit one." not in page and "| Step | ok, " in page
    assert "| Rows | NOT RUN" in page and not (tmp_path / "gpu.csv").exists()


def test_a_report_without_results_to_go_on_with_is_left_as_it_is(report, tmp_path) -> None:
    for name in ("report.md", "gpu.csv"):
        (tmp_path / name).write_text("mine")
    why = f"{tmp_path / 'report.md'} cannot be continued, no line of results: "
    why += "give another --out, or no --only"
    assert report(code=why, options=("--only", "bench")) == "mine"
    assert (tmp_path / "gpu.csv").read_text() == "mine"


def test_the_time_left_is_shared_by_the_steps_to_come(report, monkeypatch) -> None:
    limits = []
    monkeypatch.setattr(child, "run", lambda *given: limits.append(given[2]) or "ok")
    monkeypatch.setattr(gpu_report, "START", time.monotonic() - 40)  # importing took its time
    report(
        Step("build", "A", 60, ()),
        Step("tests", "B", 20, ()),
        Step("bench", "C", 20, ()),
        options=("--seconds", "540"),
    )
    assert limits == pytest.approx([300, 250, 500], abs=2)  # nobody took any of it
    page = report(Step("build", "A", 1, ()), options=("--seconds", "42"), code=1)
    assert "| A | NOT RUN: no time is left |" in page and len(limits) == 3


def gone(process: int) -> bool:
    """Whether a process has ended, or ends within two seconds."""
    for _ in range(20):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # nobody waits for it
            return True
        time.sleep(0.1)
    return False


linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
WITH_A_CHILD = """
import subprocess, sys, time
print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
time.sleep(float(sys.argv[1]))
"""


@linux_only
@pytest.mark.parametrize(("sleeps", "state"), [(60, "cut off after 3 s"), (0, "ok")])
def test_nothing_of_a_step_outlives_it(tmp_path, sleeps, state) -> None:
    log = tmp_path / "log"
    command = (*python(WITH_A_CHILD), str(sleeps))
    assert child.run(command, log, 3, tmp_path, {}) == state
    assert gone(int(log.read_text()))


STOPPED = """
import sys
from benchmarks import gpu_report as g
g.present_gpu = lambda: ("9.0", "a GPU")
steps = [g.Step("build", "One", 1, (sys.executable, "-c", "print('done')"))]
steps += [g.Step("tests", "Two", 1, (sys.executable, "-c", sys.argv.pop(), "60"))]
g.steps = lambda *_: steps
g.main()
"""


@linux_only
def test_a_report_that_is_stopped_leaves_what_was_done_and_no_process(tmp_path) -> None:
    command = [*python(STOPPED), "--out", str(tmp_path), WITH_A_CHILD]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    started = None
    for _ in range(200):
        time.sleep(0.1)
        log = tmp_path / "log.txt"
        if log.exists() and (started := re.search(r"^\d+$", log.read_text(), re.MULTILINE)):
            break
    page = (tmp_path / "report.md").read_text()
    assert "| One | ok, " in page and "| Two | began, and did not end |" in page
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 1
    assert gone(int(started[0]))


@pytest.fixture
def cut_off_at(monkeypatch):
    """Ends a time limit as soon as the log shows these words: nobody has to wait for it."""
    wait = subprocess.Popen.wait

    def end_once(log: Path, *shown: str) -> None:
        def wait_less(process, timeout=None):
            limit = time.monotonic() + (timeout or 0)
            while process.poll() is None and time.monotonic() < limit:
                text = log.read_text()
                if all(words in text for words in shown):
                    break
                time.sleep(0.05)
            return wait(process, timeout and 0)

        monkeypatch.setattr(subprocess.Popen, "wait", wait_less)

    return end_once


def test_output_comes_as_it_is_written(tmp_path, monkeypatch, cut_off_at) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    log = tmp_path / "log"
    child.run(python("import os; print(os.environ['A'])"), log, 20, tmp_path, {"A": "b"})
    assert log.read_text() == "b\n"
    cut_off_at(log, "early")
    child.run(python("import time; print('early'); time.sleep(60)"), log, 20, tmp_path, {})
    assert log.read_text() == "b\nearly\n"


@pytest.fixture
def steps(monkeypatch, tmp_path) -> dict[str, Step]:
    monkeypatch.setattr(gpu_report, "_sanitizer", lambda: "compute-sanitizer")
    return {step.title: step for step in gpu_report.steps(tmp_path, "9.0", False)}


def test_what_the_steps_run(steps) -> None:
    assert {step.group for step in steps.values()} == set(gpu_report.GROUPS)
    assert steps["Build"].environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    tests = " ".join(steps["GPU tests"].command)
    assert " -m gpu " in tests and "--continue-on-collection-errors" in tests
    assert "-o faulthandler_timeout=" in tests and "-n 8 --dist worksteal" in tests
    memcheck = " ".join(steps["Sanitizer memcheck"].command)
    assert "--report-api-errors no" in memcheck and "--kernel-name kns=detr_fast" in memcheck
    assert "report-api" not in " ".join(steps["Sanitizer racecheck"].command)


def test_tests_run_without_xdist_too(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gpu_report.importlib.util, "find_spec", lambda _: None)
    (tests,) = (s for s in gpu_report.steps(tmp_path, "9.0", False) if s.group == "tests")
    assert "-n" not in tests.command


@pytest.mark.parametrize("more", [(), ("-n", "2")], ids=["here", "xdist"])
def test_why_a_test_failed_is_known_when_the_run_is_cut_off(
    report, tmp_path, cut_off_at, more
) -> None:
    if more:
        pytest.importorskip("xdist")
    (tmp_path / "test_bad.py").write_text(
        "import time\ndef test_bad(): assert 6 * 7 == 41\ndef test_slow(): time.sleep(60)\n"
    )
    (tmp_path / "test_none.py").write_text("import no_such_package\n")
    command = (sys.executable, "-m", "pytest", "-p", "benchmarks.failing_tests", str(tmp_path))
    command += ("-p", "no:cacheprovider", "--continue-on-collection-errors", *more)
    reasons = "assert (6 * 7) == 41", "no_such_package"
    cut_off_at(tmp_path / "log.txt", *reasons)
    page = report(Step("tests", "Tests", 1, command), code=1, options=("--seconds", "20"))
    assert "cut off after" in page
    failed = page[page.index("### What failed") :]
    assert "FAILED " in failed and "test_bad.py::test_bad" in failed and "test_none.py" in failed
    log = (tmp_path / "log.txt").read_text()
    assert all(reason in log for reason in reasons)


def test_what_is_left_out_is_a_failure(report, tmp_path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_two(): pytest.skip('needs 2 GPUs')\n"
    )
    tests = (sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(tmp_path))
    assert "| Tests | ok, " in report(Step("tests", "Tests", 1, tests, r"\d+ passed"))
    (tmp_path / "test_more.py").write_text("import pytest\npytest.importorskip('not_there')\n")
    page = report(Step("tests", "Tests", 1, tests, r"\d+ passed"), code=1)
    assert "| Tests | left something out, " in page
    assert "SKIPPED [1]" in page and "could not import 'not_there'" in page


def test_at_most_eight_files_are_written(steps, tmp_path) -> None:
    written = {word for step in steps.values() for word in step.command if str(tmp_path) in word}
    names = {Path(word).name for word in written}
    assert {"gpu.csv", "gpu.png", "train_step.csv"} < names
    assert len(names | {"report.md", "log.txt"}) + 1 <= 8  # and one that is just being written


def test_what_a_group_writes_is_what_it_deletes_first(steps, tmp_path) -> None:
    for step in steps.values():
        for name in (Path(word).name for word in step.command if str(tmp_path) in word):
            assert any(Path(name).match(pattern) for pattern in gpu_report.FILES[step.group])


def test_options_of_the_steps_are_those_of_the_benchmarks(steps) -> None:
    benchmarks = {"bench_gpu": bench_gpu, "bench_train_step": bench_train_step}
    checked = set()
    for step in steps.values():
        module, *options = step.command[2:]
        name = module.removeprefix("benchmarks.")
        if name in benchmarks:
            benchmarks[name].parser().parse_args(options)
            checked.add(name)
    assert checked == set(benchmarks)


def test_the_sanitizer_is_found_beside_nvcc(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    toolkit, path = tmp_path / "toolkit", tmp_path / "path"
    for folder in (toolkit, path):
        folder.mkdir()
    monkeypatch.setenv("PATH", str(path))
    assert gpu_report._sanitizer() == "compute-sanitizer"
    for name in ("nvcc", "compute-sanitizer"):
        (toolkit / name).write_text("#!/bin/sh\n")
        (toolkit / name).chmod(0o755)
    (path / "nvcc").symlink_to(toolkit / "nvcc")
    assert gpu_report._sanitizer() == str(toolkit / "compute-sanitizer")


@pytest.mark.skipif(_C.cuda_version is None, reason="built without CUDA kernels")
def test_the_sanitizers_filter_is_in_the_name_of_every_kernel(steps) -> None:
    command = steps["Sanitizer memcheck"].command
    substring = command[command.index("--kernel-name") + 1].removeprefix("kns=")
    code = Path(_C.__file__).read_bytes()
    kernels = {}
    for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
        for name in re.findall(r"__global__ void[^(]*\([^)]*\)\s*(\w+)\(", source.read_text()):
            kernels[name] = re.findall(rb"(_Z\w*?\d" + name.encode() + rb"\w*)", code)
    assert len(kernels) >= 6
    for name, mangled in kernels.items():
        assert mangled, name
        assert all(substring.encode() in found for found in mangled)


def test_rows_become_a_page_and_a_figure(tmp_path) -> None:
    write_csv(tmp_path / "gpu.csv", ROWS)
    page = gpu_page.page({}, tmp_path)
    expected = "| matching | initial | 96 | 300 | 100 | theirs | 15.0 | 29 of 30 | 7 | 0 | 1.0 "
    assert expected + "| 50 | - | match_problems 3.0 |" in page
    assert "torch-linear-assignment not installed" in page
    # (5 us - 4 MB at 4 TB/s) / 50 steps
    assert "| FastMatcher, packed | 5.0 | 29 of 30 | 7 | 0 | 1.0 | 50 | 80 |" in page
    assert "| box losses, forward and backward: 5 x the published criterion |  | no rows |" in page
    draw(ROWS, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_rows_that_were_cut_off_before_waits_and_steps_become_a_page(tmp_path) -> None:
    write_csv(tmp_path / "gpu.csv", [{**row, "waits": "", "steps": ""} for row in ROWS])
    page = gpu_page.page({}, tmp_path)
    assert "| FastMatcher, packed | 5.0 | 29 of 30 | 7 |  | 1.0 |  | - |" in page


def test_training_steps_become_a_table(tmp_path) -> None:
    steps = ROOT / "benchmarks" / "results" / "train_step_cpu.csv"
    (tmp_path / "train_step_graph.csv").write_bytes(steps.read_bytes())
    page = gpu_page.page({}, tmp_path)
    assert "resnet18, 4 images of 320 x 320" in page
    with steps.open(newline="") as file:
        for row in csv.DictReader(file):
            assert f", commit {row['commit']}; `{row['command']}`" in page
            assert f"| {row['variant']} | {row['images_per_second']} |" in page


def test_a_table_of_other_rows_does_not_take_the_page_along(tmp_path) -> None:
    (tmp_path / "gpu.csv").write_text("what\nmatching\n")
    page = gpu_page.page({"Build": Result("build", "a GPU", "ok", [])}, tmp_path)
    assert "| Build | ok |" in page and "gpu.csv has no such rows as are expected" in page


def test_many_failures_are_counted(tmp_path) -> None:
    failed = [f"FAILED {k}" for k in range(100)]
    page = gpu_page.page({"Tests": Result("tests", "", "exit 1", failed)}, tmp_path)
    assert "FAILED 59\nand 40 more: log.txt\n" in page and "\nFAILED 60" not in page


def test_the_commit_is_what_the_environment_says(monkeypatch) -> None:
    monkeypatch.setenv("DETR_FAST_COMMIT", "abc1234")
    assert commit() == "abc1234"


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("DETR_FAST_COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexit 128\n")
    git.chmod(0o755)
    assert commit() == "unknown"


def kernel_row(what: str, variant: str, gpu_us: float, **others: str) -> dict[str, str]:
    row = {"what": what, "variant": variant, "gpu_us": str(gpu_us), "family": "initial"}
    row |= {"problems": "96", "queries": "100", "targets": "20", "host_us": "100", "waits": "0"}
    return row | others


def step_row(variant: str, speedup: float, host_waits: str = "", **others: str) -> dict[str, str]:
    row = {"variant": variant, "speedup_to_published": str(speedup), "host_waits": host_waits}
    return row | STEP_CASE | others


def states(kernels: list[dict[str, str]], steps: list[dict[str, str]]) -> list[str]:
    return [goal.state for goal in goals(kernels, steps)]


GOOD_STEPS = [
    step_row(PUBLISHED, 1.0),
    step_row(TRANSFORMERS, 1.5),
    step_row(EAGER, 1.8, "0"),
    step_row(PUBLISHED, 1.0),
    step_row(COMPILED, 2.1, "0"),
]


def good_kernels() -> list[dict[str, str]]:
    """Just what all goals ask for."""
    rows = []
    for what, ours, theirs in (
        (ASSIGNMENT, SOLVER, TORCH_ASSIGNMENT),
        (RAGGED, SOLVER, f"{TORCH_ASSIGNMENT}, padded to 100"),
        (NEW_SIZES, SOLVER, f"{TORCH_ASSIGNMENT}, padded to the largest M"),
        (LOSSES, BOX_LOSSES, PUBLISHED_LOSSES),
    ):
        for case in range(CASES[what]):
            rows.append(kernel_row(what, ours, 10, problems=str(case)))
            rows.append(kernel_row(what, theirs, 50, problems=str(case), waits="2"))
    large = {"queries": "300", "targets": "100"}
    for family in FAMILIES:
        rows.append(kernel_row(MATCHING, PACKED, 60, family=family, host_us="150"))
        rows.append(kernel_row(MATCHING, f"{PACKED} with a capacity", 99, family=family))
        time = 250 if family == "initial" else 999
        rows.append(kernel_row(MATCHING, PACKED, time, family=family, **large))
    return [*rows, kernel_row(ASSIGNMENT, f"{SOLVER}, checked", 30, problems="0", waits="1")]


def test_goals_that_are_met() -> None:
    assert states(good_kernels(), GOOD_STEPS) == [MET] * 11
    measured = [goal.measured for goal in goals(good_kernels(), GOOD_STEPS)]
    assert measured[0].startswith("5.00 x at least, in 12 of 12 cases: initial, 0 x (100 x 20)")
    assert measured[3] == "60.0 us at most, in 3 of 3 families: trained"
    assert measured[8:10] == ["2.10 x: detr_fast compiled", "1.40 x: detr_fast compiled"]


@pytest.mark.parametrize(
    ("goal", "what", "variant", "change"),
    [
        (0, ASSIGNMENT, SOLVER, {"gpu_us": "10.1"}),
        (1, RAGGED, f"{TORCH_ASSIGNMENT}, padded to 100", {"gpu_us": "49"}),
        (3, MATCHING, PACKED, {"gpu_us": "61"}),
        (4, MATCHING, PACKED, {"host_us": "151"}),
        (6, LOSSES, BOX_LOSSES, {"gpu_us": "11"}),
        (7, MATCHING, f"{PACKED} with a capacity", {"waits": "1"}),
    ],
)
def test_one_case_is_enough_to_miss_a_goal(goal, what, variant, change) -> None:
    rows = good_kernels()
    row = next(row for row in rows if (row["what"], row["variant"]) == (what, variant))
    row |= change
    assert [k for k, state in enumerate(states(rows, GOOD_STEPS)) if state != MET] == [goal]
    assert states(rows, GOOD_STEPS)[goal] == MISSED


def test_goals_are_not_met_before_all_rows_are_there() -> None:
    rows = good_kernels()
    for k, row in enumerate(rows):  # each of them matters, but for the checked solver
        without = [*rows[:k], *rows[k + 1 :]]
        if row["variant"].endswith(("checked", "with a capacity")) or row["gpu_us"] == "999":
            continue
        assert INCOMPLETE in states(without, GOOD_STEPS) or NO_ROWS in states(without, GOOD_STEPS)
    cut = [{**row, "waits": "" if k else row["waits"]} for k, row in enumerate(rows)]
    assert states(cut, GOOD_STEPS)[7] == INCOMPLETE
    assert states([], []) == [NO_ROWS] * 11
    other = [row | {"model": "resnet18"} for row in GOOD_STEPS]
    assert states(rows, other)[8:] == [NO_ROWS] * 3
    assert states(rows, [row | {"host_waits": ""} for row in GOOD_STEPS])[10] == INCOMPLETE


def test_goals_know_how_many_cases_there_are() -> None:
    count = Counter()
    for what in CASES:
        titles = [title for title, _ in bench_gpu.cases([ASSIGNMENT, LOSSES], 0, quick=False)]
        others = [name for name in CASES if name != what and name.startswith(what)]
        count[what] = sum(
            title.startswith(what) and not any(title.startswith(name) for name in others)
            for title in titles
        )
    assert count == CASES
