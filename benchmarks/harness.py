"""How everything here is timed: correctness first, then warm-up, then variants in turn.

Variants are interleaved call by call, in an order that rotates, so that what else the machine does
falls on all of them alike. A row keeps the 20th, 50th and 80th percentile and all that is needed to
repeat it.
"""

import csv
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

import detr_fast

ROOT = Path(__file__).resolve().parents[1]
Variant = Callable[[], object]


def measure(
    variants: Mapping[str, Variant],
    check: Callable[[Mapping[str, object]], None],
    seconds: float = 2.0,
    warm_up: float = 0.2,
    at_least: int = 5,
) -> dict[str, dict[str, float]]:
    """Times each variant.

    Args:
        variants: functions without arguments, by name.
        check: is given every variant's result by name, and raises if one is wrong. Nothing is timed
            before it has returned.
        seconds: time to measure for, all variants together.
        warm_up: seconds to run each variant before.
        at_least: calls of each variant, even if they take longer.

    Returns:
        For each variant its percentiles ``p20_us``, ``p50_us``, ``p80_us`` (microseconds) and the
        number of ``calls``.
    """
    check({name: run() for name, run in variants.items()})
    for run in variants.values():
        end = time.perf_counter() + warm_up
        while time.perf_counter() < end:
            run()

    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < at_least or time.perf_counter() < end:
        shift = rounds % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            variants[name]()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    result = {}
    for name, taken in times.items():
        p20, p50, p80 = np.percentile(np.array(taken) * 1e6, [20, 50, 80])
        result[name] = {
            "p20_us": round(p20, 1),
            "p50_us": round(p50, 1),
            "p80_us": round(p80, 1),
            "calls": rounds,
        }
    return result


def surroundings(seed: int) -> dict[str, str | int]:
    """What a row must carry to be repeated: machine, versions, commit, seed and command."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", module.name] if module else [sys.argv[0]]
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "numpy": np.__version__,
        "scipy": _version("scipy"),
        "detr_fast": detr_fast.__version__,
        "commit": _commit(),
        "seed": seed,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": " ".join(["python", *program, *sys.argv[1:]]),
    }


def write_csv(path: Path, rows: list[dict]) -> None:
    """Writes all rows under one header, by way of a temporary file: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit measured, with a plus sign if the tree differs from it."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    return commit + ("+" if commit and git("status", "--porcelain") else "")
