"""The report of what ran on a GPU, as far as none is needed: rows become a page and a figure."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_report


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the report itself runs")
def test_without_a_gpu_it_says_so(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_report", "--out", str(tmp_path / "report")],
        cwd=gpu_report.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "nothing was run" in done.stderr
    assert not (tmp_path / "report").exists()


def test_steps_are_logged_and_failures_counted(tmp_path) -> None:
    report = gpu_report.Report(tmp_path)
    report.run("Good step", [sys.executable, "-c", "print('fine')"], 30)
    assert not report.failed
    report.run("Bad step", [sys.executable, "-c", "print('so'); raise SystemExit(3)"], 30)
    assert report.failed
    assert (tmp_path / "good-step.log").read_text() == "fine\n"
    assert "ok" in report.lines[0] and "exit 3" in report.lines[1] and "so" in report.lines[1]
    report.run("Long step", [sys.executable, "-c", "import time; time.sleep(60)"], 0)
    assert "cut off after 5 s" in report.lines[2]


def test_rows_become_a_page_and_a_figure(tmp_path) -> None:
    rows = [
        {
            "what": what,
            "family": family,
            "problems": 96,
            "queries": 300,
            "targets": 100,
            "variant": variant,
            "gpu_us": 10.0 * k + 5,
            "host_us": 7,
            "waits": 0,
            "bytes": 4_000_000,
            "steps": 50,
            "gpu": "a GPU",
            "cuda": "13.0",
            "torch": "2.11",
            "commit": "abc",
            "command": "python -m benchmarks.bench_gpu",
            "copy_gb_per_s": 4000,
        }
        for what in ("matching", "assignment")
        for family in ("initial", "trained")
        for k, variant in enumerate(("FastMatcher, packed", "theirs"))
    ]
    path = Path(tmp_path / "gpu.csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    gpu_report._write(gpu_report.Report(tmp_path), path)
    page = (tmp_path / "report.md").read_text()
    assert "| matching | initial | 96 | 300 | 100 | theirs | 15.0 | 7 | 0 | 1.0 | 50 | - |" in page
    # (5 us - 4 MB at 4 TB/s) / 50 steps
    assert "| FastMatcher, packed | 5.0 | 7 | 0 | 1.0 | 50 | 80 |" in page
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_training_steps_become_a_table(tmp_path) -> None:
    steps = gpu_report.ROOT / "benchmarks" / "results" / "train_step_cpu.csv"
    gpu_report._write(gpu_report.Report(tmp_path), tmp_path / "none.csv", steps)
    page = (tmp_path / "report.md").read_text()
    assert "A training step of resnet18, 4 images of 320 x 320" in page
    with steps.open(newline="") as file:
        for row in csv.DictReader(file):
            assert f"| {row['variant']} | {row['images_per_second']} |" in page
