"""Pausing Python's search for garbage."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause the search for garbage in cycles, where very many objects are made and kept.

    As their number grows Python searches them all, again and again: a good part of the time that
    reading COCO's annotations, or comparing detections with them, would take.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
