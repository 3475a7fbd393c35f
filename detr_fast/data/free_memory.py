"""How much memory this process may still take, as the machine and its control groups have it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes still available on this machine, and in the control groups this is in.

    Containers, Slurm jobs and systemd services have limits of their own, each in a group of theirs.
    Pages of files, which the system drops when memory is needed, count as available.

    Args:
        root: the folder with ``proc`` and ``sys``.
    """
    free = _number_in(root / "proc/meminfo", "MemAvailable:") * 1024
    if not free:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for group, (limit, used, prefix) in _groups(root):
        most = _number_in(group / limit)
        if most:  # 0: no such file, or no limit
            kinds = (f"{prefix}inactive_file ", f"{prefix}active_file ")
            pages = sum(_number_in(group / "memory.stat", kind) for kind in kinds)
            free = min(free, max(0, most - _number_in(group / used) + pages))
    return free


# The files with a group's limit and use; what its numbers are called with those of groups inside.
_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
_VERSION_2 = "memory.max", "memory.current", ""


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the folder of each group that this process may be in, innermost first."""
    lines = ["0::/", "1:memory:/"]
    with contextlib.suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").split("\n")
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, colon, inside = rest.partition(":")
        if not colon:
            continue
        if not controllers:
            top, version = root / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            top, version = root / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        # In a container the path may be that on its host, and its own group at the top.
        group = top / inside.lstrip("/")
        while top in (group, *group.parents):
            yield group, version
            group = group.parent


def _number_in(file: Path, word: str = "") -> int:
    """Return the number after ``word`` in a file; 0 where there is none."""
    try:
        for line in file.read_text().splitlines():
            if line.startswith(word):
                return int(line[len(word) :].split()[0])
    except (OSError, ValueError, IndexError):
        pass
    return 0
