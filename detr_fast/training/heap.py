"""Keeping a process's freed memory for the next step, instead of returning it after each."""

import ctypes
import os
import platform

# glibc's names in malloc.h, and the variables with which a user may have set them already.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_CHOSEN_BY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory until the process ends; return whether it will.

    A training step on a CPU frees hundreds of megabytes. glibc returns them to the kernel, which
    clears each page again in the next step, in tens of thousands of page faults. Call it only in a
    process that is yours: it affects everything that runs there, and a process forked from it, such
    as a data worker, gets copies of the free pages that its parent writes to.

    Does nothing without glibc, or where the environment already tunes its allocator.
    """
    chosen = any(name in os.environ for name in _CHOSEN_BY)
    if chosen or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # Never trim a heap, and take large blocks from the heap too, not from separate mappings.
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, -1) and libc.mallopt(_M_MMAP_MAX, 0))
