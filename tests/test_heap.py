"""Memory that a step frees is there for the next one."""

import os
import platform
import subprocess
import sys

import pytest

PAGES = 20_000
TOUCH = f"""
import resource, sys
from detr_fast.training.heap import keep_freed_memory
import torch

if "keep" in sys.argv:
    print(keep_freed_memory())
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones({PAGES} * 512) for _ in range(4)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
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
