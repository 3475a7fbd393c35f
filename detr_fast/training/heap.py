"""Freed memory of the process: kept for the next step, instead of handed back after each."""

import ctypes
import os
import platform

# glibc's names in malloc.h, and the variables by which a user may have chosen already.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_CHOSEN_BY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, until the process ends; returns whether it will.

    A training step on a CPU frees hundreds of megabytes. glibc hands them back to the kernel, which
    clears each page anew in the next step, in tens of thousands of page faults. For a process of
    one's own: it concerns all that runs there, and a process forked from it, such as a data worker,
    gets a copy of what is free if the first one writes there.

    Does nothing without glibc, and where the environment tunes its allocator already.
    """
    chosen = any(name in os.environ for name in _CHOSEN_BY)
    if chosen or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # No heap is trimmed, and large blocks come from the heap too, not from mappings of their own.
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, -1) and libc.mallopt(_M_MMAP_MAX, 0))
