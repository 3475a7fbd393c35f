"""How everything here is timed: correctness first, then warm-up, then variants in turn.

Variants are interleaved call by call, in an order that rotates, so that what else the machine does
falls on all of them alike. A row keeps the 20th, 50th and 80th percentile and all that is needed to
repeat it. A variant too slow to be called often, or at all, has a row that says so.
"""

import csv
import datetime
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

import detr_fast
from benchmarks.checkout import commit
from detr_fast.files import written_whole

Variant = Callable[[], object]


def measure(
    variants: Mapping[str, Variant],
    check: Callable[[Mapping[str, object]], None],
    seconds: float = 2.0,
    warm_up: float = 0.2,
    at_least: int = 5,
    slow: float = 0.2,
    slow_calls: int = 3,
    too_slow: float = 10.0,
) -> dict[str, dict[str, float | str]]:
    """Times each variant.

    Args:
        variants: functions without arguments, by name.
        check: is given every variant's result by name, and raises if one is wrong. Nothing is timed
            before it has returned.
        seconds: time to measure for, all variants but the slow ones together.
        warm_up: seconds to run each variant before.
        at_least: calls of each variant, even if they take longer.
        slow: a variant whose first call takes more seconds is not warmed up and called only
            ``slow_calls`` times, the first included.
        too_slow: a variant whose first call takes more seconds is not timed at all.

    Returns:
        For each variant its percentiles ``p20_us``, ``p50_us``, ``p80_us`` (microseconds; empty if
        it was too slow), the number of ``calls``, and a ``note`` if it was not treated as the rest.
    """
    results, first = {}, {}
    for name, run in variants.items():
        start = time.perf_counter()
        results[name] = run()
        first[name] = time.perf_counter() - start
    check(results)
    del results
    calls_wanted = {name: slow_calls if taken > slow else None for name, taken in first.items()}
    names = [name for name in variants if first[name] <= too_slow]
    for name in names:
        end = time.perf_counter() + (0 if first[name] > slow else warm_up)
        while time.perf_counter() < end:
            variants[name]()

    # To a call that takes so long, warming up matters little.
    times = {name: [first[name]] if calls_wanted[name] else [] for name in names}
    rounds, spent = 0, 0.0
    due = names
    while due and (rounds < at_least or spent < seconds):
        shift = rounds % len(due)
        for name in due[shift:] + due[:shift]:
            start = time.perf_counter()
            variants[name]()
            taken = time.perf_counter() - start
            times[name].append(taken)
            spent += 0 if calls_wanted[name] else taken
        rounds += 1
        due = [name for name in due if len(times[name]) < (calls_wanted[name] or math.inf)]
    return {
        name: _percentiles(times[name], calls_wanted[name])
        if name in times
        else left_out(f"a call takes {first[name]:.1f} s")
        for name in variants
    }


def left_out(why: str) -> dict[str, float | str]:
    """The figures of a variant that was not timed, as :func:`measure` gives them."""
    return {"p20_us": "", "p50_us": "", "p80_us": "", "calls": 0, "note": f"left out: {why}"}


def _percentiles(taken: list[float], wanted: int | None) -> dict[str, float | str]:
    p20, p50, p80 = np.percentile(np.array(taken) * 1e6, [20, 50, 80])
    return {
        "p20_us": round(p20, 1),
        "p50_us": round(p50, 1),
        "p80_us": round(p80, 1),
        "calls": len(taken),
        "note": f"{wanted} calls, since slow" if wanted else "",
    }


def environment_info(seed: int, packages: Mapping[str, str] | None = None) -> dict[str, str | int]:
    """What a row must carry to be repeated: machine, versions, commit, seed and command.

    ``packages`` are the versions of further packages, by name.
    """
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
        **(packages or {}),
        "detr_fast": detr_fast.__version__,
        "commit": commit(),
        "seed": seed,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": shlex.join(["python", *program, *sys.argv[1:]]),
    }


def write_csv(path: Path | None, rows: list[dict]) -> None:
    """Writes all rows under one header; never half a file.

    A row need not have all values that others have. Nothing without a path, as ``--out`` is by
    default, or without a row.
    """
    if path is None or not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, fieldnames=list(names), restval="")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")


def read_csv(path: Path | None) -> list[dict[str, str]]:
    """The rows of a file that :func:`write_csv` wrote; none if there is no such file."""
    if path is None or not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
