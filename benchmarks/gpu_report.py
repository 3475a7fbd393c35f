"""Everything that a GPU has to prove, in one command of at most nine minutes, the build included.

python -m benchmarks.gpu_report --out DIR

From a checkout: builds the extension in place for the GPU that is there, runs the tests that need
one, compute-sanitizer's memcheck and racecheck on a small set of cases, and the benchmarks. Writes
report.md, gpu.csv, gpu.png and the logs to DIR, and ends with 1 if anything failed.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 540  # seconds, of the whole

# What compute-sanitizer watches: small, since it slows kernels down by orders of magnitude.
SANITIZED = """
import torch
from benchmarks.cases import FAMILIES, Case, make
from detr_fast import FastMatcher, PackedTargets, check_faults, linear_sum_assignment
for family in FAMILIES:
    for size in ((2, 40, 5, 9), (2, 330, 5, 20), (1, 6, 5, 15)):
        layers, targets = make(Case(family, *size, layers=2), seed=1)
        layers = [{k: v.cuda() for k, v in layer.items()} for layer in layers]
        FastMatcher().match_layers(layers, targets)
        FastMatcher(class_cost="focal").match_layers(
            [{**x, "pred_logits": x["pred_logits"].bfloat16()} for x in layers], targets)
        FastMatcher().match_packed(layers, PackedTargets.pack(targets, capacity=64))
for shape in ((3, 5, 9), (2, 30, 20), (1, 20, 400)):
    for dtype in (torch.float32, torch.float64):
        linear_sum_assignment(torch.rand(shape, device="cuda", dtype=dtype))
        linear_sum_assignment(torch.randint(4, shape, device="cuda").to(dtype))
check_faults()
print("all cases ran")
"""


class Report:
    """Runs one step after the other and keeps what happened."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.start = time.monotonic()
        self.lines: list[str] = []
        self.failed = False

    def run(self, title: str, command: list[str], seconds: float, **environment: str) -> str:
        """Runs a command with a time limit; its output goes to a log and is returned."""
        left = max(5.0, min(seconds, BUDGET - (time.monotonic() - self.start)))
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=left,
            )
            output, state = done.stdout, "ok" if done.returncode == 0 else f"exit {done.returncode}"
        except subprocess.TimeoutExpired as expired:
            text = expired.stdout or b""
            output = text.decode(errors="replace") if isinstance(text, bytes) else text
            state = f"cut off after {left:.0f} s"
        self.failed |= state != "ok"
        name = title.lower().replace(" ", "-")
        (self.out / f"{name}.log").write_text(output)
        last = [line for line in output.strip().splitlines() if line.strip()][-1:]
        self.say(title, f"{state}, {time.monotonic() - began:.0f} s; {' '.join(last)}")
        return output

    def say(self, title: str, text: str) -> None:
        self.lines.append(f"| {title} | {text.replace('|', '/')} |")
        print(f"{title}: {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="few cases, to see that all runs")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu_report needs a GPU that torch can use; nothing was run")
    args.out.mkdir(parents=True, exist_ok=True)
    report = Report(args.out.resolve())
    python = sys.executable
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    report.run(
        "Build",
        [python, "setup.py", "build_ext", "--inplace"],
        240,
        TORCH_CUDA_ARCH_LIST=capability,
        DETR_FAST_CUDA="1",
    )
    report.run("Info", [python, "-m", "detr_fast.info"], 60)
    # -k: the tests of a GPU's results; those of the whole suite that need none run in CI.
    tests = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").glob("test_*.py"))
    with_gpu = [t for t in tests if "cuda" in (ROOT / t).read_text()]
    report.run(
        "GPU tests",
        [python, "-m", "pytest", "-q", "-rs", "--no-header", "-k", "cuda", *with_gpu],
        180,
    )
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        report.say("Sanitizer", "NOT RUN: there is no compute-sanitizer on PATH")
        report.failed = True
    else:
        script = args.out / "sanitized.py"
        script.write_text(SANITIZED)
        for tool in ("memcheck", "racecheck"):
            report.run(
                f"Sanitizer {tool}",
                [sanitizer, "--tool", tool, "--error-exitcode", "9", python, str(script)],
                70,
                PYTHONPATH=str(ROOT),
                PYTORCH_NO_CUDA_MEMORY_CACHING="1",
            )
    rows = args.out / "gpu.csv"
    command = [python, "-m", "benchmarks.bench_gpu", "--out", str(rows)]
    report.run("Benchmarks", command + (["--quick"] if args.quick else []), 240)
    steps = args.out / "train_step.csv"
    command = [python, "-m", "benchmarks.bench_train_step", "--out", str(steps)]
    if not args.quick:
        command += ["--model", "resnet50", "--size", "800", "1066", "--batch", "8"]
    report.run("Training step", [*command, "--amp", "bf16", "--seconds", "20"], 240)
    _write(report, rows, steps)
    raise SystemExit(report.failed)


def _write(report: Report, rows: Path, steps: Path | None = None) -> None:
    text = ["# What ran on a GPU", "", "| step | result |", "|---|---|", *report.lines, ""]
    if rows.is_file():
        with rows.open() as file:
            table = list(csv.DictReader(file))
        first = table[0]
        text += [
            f"{first['gpu']}, CUDA {first['cuda']}, torch {first['torch']}, commit "
            f"{first['commit']}; `{first['command']}`. A copy moves {first['copy_gb_per_s']} GB/s. "
            "Medians, cache cold, variants in turn; GPU time excludes launching, host time is that "
            "of the call on an idle GPU. The floor is the time to move what has to be moved. "
            "Steps are the longest chain of dependent ones among the first problems "
            "(benchmarks/chain.py); what is beyond the floor, divided by them, is the time of one.",
            "",
            "| what | family | problems | N | M | variant | GPU us | host us | waits | floor us "
            "| steps | ns per step |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in table:
            floor = float(row["bytes"]) / (float(row["copy_gb_per_s"]) * 1e3)
            text.append(
                "| "
                + " | ".join(
                    row[key]
                    for key in ("what", "family", "problems", "queries", "targets", "variant")
                )
                + f" | {row['gpu_us']} | {row['host_us']} | {row['waits']} | {floor:.1f}"
                + f" | {row['steps']} | {_per_step(row, floor)} |"
            )
        _draw(table, report.out / "gpu.png")
    if steps is not None and steps.is_file():
        text += _training_steps(steps)
    (report.out / "report.md").write_text("\n".join(text) + "\n")
    print(f"wrote {report.out / 'report.md'}")


def _per_step(row: dict[str, str], floor: float) -> str:
    """Only of what is ours: rivals do other steps."""
    steps, ours = int(row["steps"]), row["variant"].startswith(("FastMatcher", "linear_sum"))
    return f"{(float(row['gpu_us']) - floor) * 1e3 / steps:.0f}" if steps and ours else "-"


def _training_steps(path: Path) -> list[str]:
    with path.open() as file:
        table = list(csv.DictReader(file))
    first = table[0]
    columns = ("images_per_second", "speedup_to_published", "step_ms", "host_waits")
    lines = [
        "",
        f"A training step of {first['model']}, {first['batch']} images of {first['height']} x "
        f"{first['width']}, {first['precision']}; `{first['command']}`.",
        "",
        f"| variant | {' | '.join(columns)} | peak_mb_per_image |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        cells = [row["variant"], *(row[name] for name in columns), row["peak_mb_per_image"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _draw(table: list[dict[str, str]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["what"] for row in table))
    figure = Figure(figsize=(11, 4.8 * len(kinds)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds, strict=True):
        chosen = [row for row in table if row["what"] == kind]
        cases = list(dict.fromkeys(_case(row) for row in chosen))
        variants = list(dict.fromkeys(row["variant"] for row in chosen))
        for k, variant in enumerate(variants):
            mine = {_case(row): float(row["gpu_us"]) for row in chosen if row["variant"] == variant}
            at = [
                c + (k - (len(variants) - 1) / 2) * 0.8 / len(variants) for c in range(len(cases))
            ]
            axes.bar(
                at,
                [mine.get(case, float("nan")) for case in cases],
                width=0.8 / len(variants),
                label=variant,
            )
        axes.set_yscale("log")
        axes.set_xticks(range(len(cases)), cases, fontsize=7)
        axes.set_ylabel("microseconds on the GPU's clock")
        axes.set_title(f"{kind}, {table[0]['gpu']}")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path)


def _case(row: dict[str, str]) -> str:
    return f"{row['family']}\n{row['problems']} x\n{row['queries']} x {row['targets']}"


if __name__ == "__main__":
    main()
