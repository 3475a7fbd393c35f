"""Environment variables that choose among compiled code, for tests and measurements."""

import os

SWITCHES = {
    "DETR_FAST_SIMD": ("plain", "avx2", "avx512"),  # the best to use of those the CPU has
    "DETR_FAST_THREADS": ("openmp", "own"),
}


def check() -> None:
    """Raise ImportError for a value that compiled code would ignore without a word."""
    for name, choices in SWITCHES.items():
        value = os.environ.get(name)
        if value and value not in choices:
            raise ImportError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
