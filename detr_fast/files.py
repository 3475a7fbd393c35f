"""Files that are written whole or not at all, and whether they can be written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def check_writable(path: Path) -> None:
    """Make sure, before the work whose result it is, that ``path`` can be written.

    Its folder is made if there is none; a file that is there stays as it is.

    Raises:
        OSError: it cannot; names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_stream(path):
        return
    new = not os.path.lexists(path)
    with path.open("ab"):
        pass
    if new:
        path.unlink(missing_ok=True)  # another process of the same run may have been here


def _is_stream(path: Path) -> bool:
    """Return whether the path is a pipe or a terminal."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which then replaces ``path``: a reader sees the old file or the
    new one, never half of it. After an error the old one is unchanged, and nothing else is left.

    For one process at a time. A link is replaced, not what it points to; a pipe or a terminal is
    written to as it is.

    Raises:
        OSError: the file cannot be written, as on a full disk; names ``path``.
    """
    if _is_stream(path):
        yield path
        return
    # Always the same: what a killed process leaves behind is overwritten by the next.
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # as on a read-only disk
            temporary.unlink(missing_ok=True)  # what is left of it may be what fills the disk
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno:  # torch hides it behind a RuntimeError
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
