"""Memory that a step frees is there for the next one."""

import os
import platform
import subprocess
import sys

import pytest

from detr_fast import cli

PAGES = 10_000  # of a block, which is larger than the 32 MiB up to which glibc adapts
TOUCH = f"""
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages are few
from detr_fast.training.heap import keep_freed_memory
import torch

if "keep" in sys.argv:
    print(keep_freed_memory())
floats = {PAGES} * resource.getpagesize() // 4
faults = []
for _ in range(12):  # of which the first few make the heap grow
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = torch.ones(floats)
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[6:]))
"""

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="needs glibc, whose allocator it is about"
)


def run(tmp_path, *args: str, **variables: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, *args],
        env=clean | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_freed_pages_are_not_cleared_again(tmp_path):
    (default,) = run(tmp_path)
    kept, faults = run(tmp_path, "keep")
    assert kept == "True"
    assert int(faults) < 100 < PAGES <= int(default)


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_chose_stays(tmp_path, variable):
    value = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}.get(variable, "100000")
    kept, faults = run(tmp_path, "keep", **{variable: value})
    assert kept == "False"
    assert int(faults) >= PAGES


def test_other_tunables_are_not_the_allocators(tmp_path):
    kept, faults = run(tmp_path, "keep", GLIBC_TUNABLES="glibc.cpu.x86_ibt=off")
    assert kept == "True"
    assert int(faults) < 100


def test_the_command_keeps_it(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(1))
    assert cli.main(["eval", str(tmp_path / "nothing")]) == 2
    assert calls == [1]
