"""Everything that a GPU has to prove, in one command of at most nine minutes, the build included.

python -m benchmarks.gpu_report --out DIR

From a checkout: builds the extension in place for the GPU that is there, runs the tests that need
one, the benchmarks, and compute-sanitizer's memcheck and racecheck. DIR then has report.md,
written anew after each step, the rows (gpu.csv, train_step*.csv), a picture of them (gpu.png), and
all output (log.txt). Ends with 1 if anything failed; whatever fails, the other steps run.

``--only`` makes several calls of it: what earlier ones did otherwise stays, with its machine and
commit. On a machine where nothing was built yet, ``build`` must be among them. Without git,
DETR_FAST_COMMIT says which commit it is.
"""

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import child
from benchmarks.checkout import ROOT, commit
from benchmarks.gpu_page import Result, page, results_of

START = time.monotonic()  # nothing slow is imported here: about when this process began
BUDGET = 540.0  # seconds
LEAST = 5.0  # in which no step gets anywhere
GROUPS = ("build", "tests", "bench", "train", "sanitizer")
FILES = {"bench": ("gpu.csv", "gpu.png"), "train": ("train_step*.csv",)}  # by group
ALLOWED = "needs 2 GPUs"  # the reason of a test that may be skipped
MODEL = ("--model", "resnet50", "--size", "800", "1066", "--batch", "8", "--seconds", "12")


class Step(NamedTuple):
    """A command, and how much of the time that is left it gets beside the steps after it."""

    group: str
    title: str
    share: float
    command: tuple[str, ...]
    expected: str = ""  # a pattern that the output of one that did its work has
    environment: Mapping[str, str] = {}


def steps(out: Path, capability: str, quick: bool) -> list[Step]:
    """All steps, those first on which others depend or that would be missed most."""
    python, module = sys.executable, (sys.executable, "-m")
    build = (python, "setup.py", "build_ext", "--inplace")
    for_this_gpu = {"TORCH_CUDA_ARCH_LIST": capability, "DETR_FAST_CUDA": "1"}
    # Only those that have any: others are skipped whole if a package of theirs is missing.
    files = [f"tests/{path.name}" for path in gpu_tests()]
    tests = (*module, "pytest", "-v", "--no-header", "--tb=short", "-m", "gpu", *files)
    tests += ("--continue-on-collection-errors", "-o", "faulthandler_timeout=60")
    tests += ("-rfEs", "-p", "benchmarks.failing_tests")
    if importlib.util.find_spec("xdist"):
        tests += ("-n", "8", "--dist", "worksteal")  # a few tests compile a model, for long
    one_thread = {"OMP_NUM_THREADS": "1"}
    bench = (*module, "benchmarks.bench_gpu", "--out", str(out / "gpu.csv"))
    bench += ("--quick",) if quick else ()
    draw = (*module, "benchmarks.gpu_plot", str(out / "gpu.csv"), str(out / "gpu.png"))

    def train(rows: str, *contenders: str) -> tuple[str, ...]:
        command = (*module, "benchmarks.bench_train_step", "--out", str(out / rows))
        command += ("--seconds", "1") if quick else MODEL
        return (*command, "--amp", "bf16", "--only", *contenders)

    # Of the many kernels that torch launches none is watched; ours have their namespace's name.
    watch = (_sanitizer(), "--kernel-name", "kns=detr_fast", "--error-exitcode", "9", "--tool")
    watched = (*module, "benchmarks.sanitized")
    clean = r"all cases ran[\s\S]*SUMMARY: 0 (errors|hazards)"
    own_memory = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # of each tensor: memcheck sees its end
    # torch tries calls that may fail, and goes on: no error of ours.
    memcheck = (*watch, "memcheck", "--report-api-errors", "no", *watched)
    racecheck = (*watch, "racecheck", *watched)
    return [
        Step("build", "Build", 90, build, environment=for_this_gpu),
        Step("build", "Info", 20, (*module, "detr_fast.info")),
        Step("tests", "GPU tests", 110, tests, r"\d+ passed", one_thread),
        # A kernel that breaks the process takes only its own kind of rows along.
        Step("bench", "Matching", 55, (*bench, "--sets", "matching")),
        Step("bench", "Assignment", 80, (*bench, "--sets", "assignment")),
        Step("bench", "Boxes", 20, (*bench, "--sets", "box_losses", "box_iou")),
        Step("bench", "Picture", 10, draw),
        Step("train", "Training step", 40, train("train_step.csv", "transformers", "detr_fast")),
        Step("train", "CUDA graph", 35, train("train_step_graph.csv", "detr_fast CUDA graph")),
        Step("train", "Compiled", 100, train("train_step_compiled.csv", "detr_fast compiled")),
        Step("sanitizer", "Sanitizer memcheck", 35, memcheck, clean, own_memory),
        Step("sanitizer", "Sanitizer racecheck", 35, racecheck, clean),
    ]


def gpu_tests() -> list[Path]:
    """The files with tests that need a GPU."""
    marks = re.compile(r"\b(needs_cuda|needs_two_gpus|DEVICES|mark\.gpu)\b")
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [path for path in files if marks.search(path.read_text())]


def _sanitizer() -> str:
    """Path of compute-sanitizer: on PATH, or where nvcc is or may be; its bare name otherwise."""
    name = "compute-sanitizer"
    nvcc = shutil.which("nvcc")
    folders = [os.environ.get("PATH", ""), str(Path(os.environ.get("CUDA_HOME", ""), "bin"))]
    folders += [str(Path(nvcc).resolve().parent)] if nvcc else []
    folders.append("/usr/local/cuda/bin")
    return shutil.which(name, path=os.pathsep.join(folders)) or name


class Report:
    """Runs one step after the other and keeps what happened, beside what earlier calls did.

    Of what they did in groups that are now to run, only the log stays; if all are, not even that.

    Raises:
        SystemExit: ``report.md`` is there and has no results to go on with.
    """

    def __init__(self, out: Path, about: str, groups: Collection[str]) -> None:
        self.out, self.about = out, about
        self.log = out / "log.txt"
        self.results: dict[str, Result] = {}  # by title
        self.failed = False
        out.mkdir(parents=True, exist_ok=True)
        if set(groups) == set(GROUPS):
            self.log.unlink(missing_ok=True)
        else:
            self._go_on(groups)
        for group in groups:
            for pattern in FILES.get(group, ()):
                for path in out.glob(pattern):
                    path.unlink()
        self._write()

    def _go_on(self, groups: Collection[str]) -> None:
        """Takes over the results of other groups."""
        path = self.out / "report.md"
        try:
            earlier = results_of(path.read_text())
        except FileNotFoundError:
            return
        except ValueError as error:
            raise SystemExit(
                f"{path} cannot be continued, {error}: give another --out, or no --only"
            ) from None
        self.results = {t: result for t, result in earlier.items() if result.group not in groups}

    def run(self, step: Step, seconds: float) -> None:
        """Runs a step with a time limit, and writes the report before and after."""
        if seconds < LEAST:
            self.failed = True
            self._say(step, "NOT RUN: no time is left")
            return
        self._keep(step, "began, and did not end")
        with self.log.open("ab") as log:
            title = f"=== {step.title}: {' '.join(step.command)}"
            log.write(f"\n{title}\n=== {self.about}\n".encode())
            start = log.tell()
        began = time.monotonic()
        state = child.run(step.command, self.log, seconds, ROOT, step.environment)
        took = time.monotonic() - began
        with self.log.open("rb") as log:
            log.seek(start)
            output = log.read().decode(errors="replace")
        if state == "ok" and not re.search(step.expected, output):
            state = "did not say that it did its work"
        lines = [line for line in output.splitlines() if line.strip()]
        # What is skipped here is proven nowhere.
        skipped = [line for line in lines if line.startswith("SKIPPED ") and ALLOWED not in line]
        if state == "ok" and skipped:
            state = "left something out"
        self.failed |= state != "ok"
        failures = {
            re.sub("^(FAILED|ERROR) ", "", line).split(" - ")[0]: line  # the last has the reason
            for line in lines
            if re.match("(FAILED|ERROR) [^ ]", line)
        }
        self._say(
            step, f"{state}, {took:.0f} s; {' '.join(lines[-1:])}", [*failures.values(), *skipped]
        )

    def _say(self, step: Step, result: str, failures: Sequence[str] = ()) -> None:
        self._keep(step, result, failures)
        print(f"{step.title}: {result}", flush=True)

    def _keep(self, step: Step, result: str, failures: Sequence[str] = ()) -> None:
        self.results[step.title] = Result(step.group, self.about, result, list(failures))
        self._write()

    def _write(self) -> None:
        text = page(self.results, self.out)
        temporary = self.out / "report.md.tmp"
        temporary.write_text(text)
        temporary.replace(self.out / "report.md")


def present_gpu() -> tuple[str, str]:
    """Compute capability and name of the GPU that torch would use, asked in another process.

    Raises:
        SystemExit: there is none.
    """
    ask = "import torch as t; print(*t.cuda.get_device_capability(), t.cuda.get_device_name())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, timeout=90
        )
    except subprocess.TimeoutExpired as error:
        why = str(error)
    else:
        if done.returncode == 0:
            major, minor, name = done.stdout.strip().split(maxsplit=2)
            return f"{major}.{minor}", name
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise SystemExit(f"gpu_report needs a GPU that torch can use; nothing was run: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="few cases, to see that all runs")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=GROUPS,
        help=f"some of {','.join(GROUPS)}, with commas between them",
    )
    parser.add_argument(
        "--seconds", type=float, default=BUDGET, help=f"for everything (default: {BUDGET:.0f})"
    )
    args = parser.parse_args()
    if unknown := set(args.only) - set(GROUPS):
        parser.error(f"--only {','.join(sorted(unknown))}: choose from {','.join(GROUPS)}")
    capability, name = present_gpu()
    # What runs is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("gpu_report was told to end"))
    about = f"{name}, compute capability {capability}, commit {commit()}."
    out = args.out.resolve()
    report = Report(out, about, args.only)
    chosen = [step for step in steps(out, capability, args.quick) if step.group in args.only]
    for k, step in enumerate(chosen):
        left = args.seconds - (time.monotonic() - START)
        report.run(step, left * step.share / sum(later.share for later in chosen[k:]))
    raise SystemExit(report.failed)


if __name__ == "__main__":
    main()
