"""What is wrong with data on disk, in one line, also from a worker; whether a worker is gone."""

from __future__ import annotations

_WORKER_PREFIX = "Caught "
# How torch's errors start when a worker, or the thread that receives from the workers, is gone.
_WORKER_LOST = ("DataLoader worker (pid", "Pin memory thread exited unexpectedly")


class DataError(ValueError):
    """Something is wrong with the data on disk; ``str(error)`` is one line naming file and entry.

    A DataLoader worker cannot pass on its exception: torch re-creates it in the main process as
    ``type(error)("Caught DataError in DataLoader worker process 0.\\nOriginal Traceback ...")``.
    The constructor recognises that text and keeps only the original line, so the message is the
    same with and without workers. The worker's traceback stays in ``worker_traceback``.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        original = _line_from_worker(text)
        self.worker_traceback: str | None = None if original is None else text
        super().__init__(_one_line(text if original is None else original))


class LostWorker(RuntimeError):
    """A DataLoader worker is gone, and torch does not know yet."""


def clean_message(error: BaseException) -> str:
    """Return the single line to show a person for ``error``, without any worker's traceback.

    For a :class:`DataError` it is the message itself; for any other exception it is
    ``"TypeName: message"``, with the text of a worker's traceback reduced to its last line.
    """
    if isinstance(error, DataError):
        return str(error)
    text = str(error)
    original = _line_from_worker(text)
    if original is not None:
        return _one_line(original)
    name = type(error).__name__
    return f"{name}: {_one_line(text)}" if text else name


def is_worker_lost(error: BaseException) -> bool:
    """Return whether a DataLoader raised ``error`` because a worker is gone, without an error of
    its own: killed, mostly for lack of memory."""
    torchs = isinstance(error, RuntimeError) and str(error).startswith(_WORKER_LOST)
    return torchs or isinstance(error, LostWorker)


def is_connection_lost(error: EOFError | ConnectionError) -> bool:
    """Return whether a connection to a process of this one's raised ``error``: not a data set or a
    sampler, nor torch, which raises again what a worker has met."""
    place = error.__traceback__
    while place.tb_next is not None:
        place = place.tb_next
    return place.tb_frame.f_globals.get("__name__") == "multiprocessing.connection"


def _line_from_worker(text: str) -> str | None:
    """Return the exception's message from a worker's traceback; None for ordinary text."""
    if not (text.startswith(_WORKER_PREFIX) and "Traceback (most recent call last)" in text):
        return None
    # The traceback ends with "package.module.DataError: message" (a chained cause comes earlier);
    # a DataError is a single line, so the last line that names one is the whole message.
    lines = [line for line in text.splitlines() if line.strip()]
    name = f"{DataError.__module__}.{DataError.__qualname__}"
    for line in reversed(lines):
        if line.startswith(f"{name}: ") or line == name:
            return line[len(name) + 2 :]
    return lines[-1]


def _one_line(text: str) -> str:
    return " ".join(text.split("\n")).replace("\r", " ").strip()
