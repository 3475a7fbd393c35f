"""How much memory there is, in folders laid out as Linux shows it."""

import os
from pathlib import Path

import pytest

from detr_fast.data.free_memory import available_memory

GIB = 2**30


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": f"MemAvailable: {64 * 2**20} kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_of_this_machine():
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= everything


def test_without_any_limit(tmp_path):
    assert available_memory(lay(tmp_path, {})) == 64 * GIB
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{3 * GIB}\n",
        },
    )
    assert available_memory(root) == 64 * GIB


@pytest.mark.parametrize("inside", ["/", "/system.slice/slurmstepd.scope/job_7/step_0"])
def test_pages_of_files_are_available(tmp_path, inside):
    """As when the data set was just unpacked; wherever the limited group is."""
    group = f"sys/fs/cgroup{inside}".rstrip("/")
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{inside}\n",
            f"{group}/memory.max": f"{16 * GIB}\n",
            f"{group}/memory.current": f"{15 * GIB}\n",
            f"{group}/memory.stat": f"anon {2 * GIB}\ninactive_file {9 * GIB}\n"
            f"active_file {3 * GIB}\nshmem {GIB}\n",
        },
    )
    assert available_memory(root) == 13 * GIB


def test_the_tightest_of_the_groups_around_counts(tmp_path):
    groups = {"user.slice": 40, "user.slice/job": 8, "user.slice/job/step": 20, "elsewhere": 1}
    files = {"proc/self/cgroup": "3:cpuset:/elsewhere\n0::/user.slice/job/step\n"}
    for group, limit in groups.items():
        files[f"sys/fs/cgroup/{group}/memory.max"] = f"{limit * GIB}\n"
        files[f"sys/fs/cgroup/{group}/memory.current"] = f"{2 * GIB}\n"
    assert available_memory(lay(tmp_path, files)) == 6 * GIB


@pytest.mark.parametrize("seen", ["/job", "/docker/0123"])  # its own path, or that on its host
def test_version_1(tmp_path, seen):
    group = "sys/fs/cgroup/memory" + (seen if seen == "/job" else "")
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": f"5:cpu,memory:{seen}\n2:pids:/\n",
            f"{group}/memory.limit_in_bytes": f"{4 * GIB}\n",
            f"{group}/memory.usage_in_bytes": f"{3 * GIB}\n",
            f"{group}/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}\n"
            f"total_active_file {GIB // 2}\n",
        },
    )
    assert available_memory(root) == 5 * GIB // 2


@pytest.mark.parametrize("line", ["0::/a\u2028b", "0::/a:b", "0::/a\udc80"])
def test_odd_names_of_groups(tmp_path, line):
    group = tmp_path / "sys/fs/cgroup" / line[4:]
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"\nodd\n{line}\n", errors="surrogateescape")
    assert available_memory(lay(tmp_path, {})) == GIB


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_without_the_names_of_groups(tmp_path, file):
    assert available_memory(lay(tmp_path, {f"sys/fs/cgroup/{file}": f"{GIB}\n"})) == GIB


def test_more_than_the_limit_in_use(tmp_path):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
    }
    assert available_memory(lay(tmp_path, files)) == 0
