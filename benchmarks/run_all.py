"""Measures everything that runs on the CPU again and draws it: python -m benchmarks.run_all.

Writes benchmarks/results/*_cpu.csv, the pictures and the tables of the README. Takes about 15
minutes on two cores, which should have nothing else to do. The loader is measured if the folder
shared/data with photographs lies beside the checkout.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.checkout import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that all runs")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="tables go here")
    args = parser.parse_args()
    quick = ["--quick"] if args.quick else []
    for name in ("assignment", "matcher"):
        _run(f"bench_{name}", *quick, "--out", _shown(args.results / f"{name}_cpu.csv"))
    _run("plot", _shown(args.results))
    if not args.quick:
        steps = _shown(args.results / "train_step_cpu.csv")
        options = ("--threads", "2", "--allocators", "kept", "default", "--seconds", "60")
        _run("bench_train_step", *options, "--out", steps)
    if not args.quick and (ROOT.parent / "shared" / "data").is_dir():
        _run("bench_loader", "--out", _shown(args.results / "loader_cpu.csv"))
        _run("scaling_model", "--write", _shown(ROOT / "benchmarks" / "SCALING.md"))
    if not args.quick:  # the tables are of full-sized cases
        _run("tables", _shown(args.results), "--write", _shown(args.readme))


def _run(module: str, *args: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}", *args]
    print("$ python", *command[1:], flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def _shown(path: Path) -> str:
    """Relative to the repository if it lies inside: rows hold the command."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    main()
