"""Files that are written whole or not at all, and whether they can be written."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_writable(path: Path) -> None:
    """Make sure, before the work whose result it is, that ``path`` can be written.

    Its folder is made if there is none.

    Raises:
        OSError: it cannot; names ``path``.
    """
    if _is_stream(path):
        return
    try:
        folder = path.resolve().parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_stream(path: Path) -> bool:
    """Return whether the path is a pipe or a terminal, such as ``/dev/stdout``."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which then replaces ``path``: a reader sees the old file or the
    new one, never half of it. After an error the old one is unchanged, and nothing else is left.
    Of processes that write the same file, the last to end has its content kept. A link's target is
    written; a pipe or a terminal is written to as it is.

    Raises:
        OSError: the file cannot be written, as on a full disk; names ``path``.
    """
    if _is_stream(path):
        yield path
        return
    target = path.resolve()
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):  # as on a read-only disk
            temporary.unlink(missing_ok=True)  # what is left of it may be what fills the disk
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno:  # torch hides it behind a RuntimeError
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
