"""The benchmarks run, and what the README says of them is what the committed rows say."""

import csv
import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_train_step, tables
from benchmarks.scaling_model import ASSUMED, all_reduce_seconds
from benchmarks.step_contenders import EAGER, PUBLISHED, Case

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


def test_committed_rows_can_be_repeated():
    for name in ("assignment", "matcher"):
        for row in rows_of(RESULTS / f"{name}_cpu.csv"):
            assert row["command"].startswith(f"python -m benchmarks.bench_{name}")
            assert row["commit"] and row["seed"] and row["torch"] and row["scipy"] and row["cpu"]
            assert row["p50_us"] or row["note"].startswith("left out: ")


def test_training_steps_in_processes_of_their_own():
    case = Case("resnet18", (64, 64), 1, "none", padded=False, seed=0, device=torch.device("cpu"))
    rows = bench_train_step.run_case(case, [PUBLISHED, EAGER], ["kept"], seconds=0.1)
    assert [row["variant"] for row in rows] == [PUBLISHED, EAGER]
    for row in rows:
        assert row["calls"] >= 5 and row["peak_mb"] > 100 and row["page_faults"] >= 0
        assert 0 < row["forward_ms"] < row["step_ms"]
    assert not multiprocessing.active_children()
    assert "| float32 |" in tables.step_table([{k: str(v) for k, v in r.items()} for r in rows])
