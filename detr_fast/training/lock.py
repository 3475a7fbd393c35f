"""A lock on a run's folder: two processes that write one run would destroy it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

LOCK = ".lock"  # a file in the folder


class FolderLock:
    """Within this context no other process can hold the lock of the same folder.

    The system releases it when the process ends, however it ends, even if data workers that it has
    forked are still about: a record lock is not inherited, as flock's would be. (It also ends if
    this process opens the file again and closes it.) A file system without locks, as some of
    clusters are, is noted and gets none.

    Args:
        patience: seconds to wait for another process that holds it.

    Raises:
        ValueError: another process holds it; names that process.
    """

    def __init__(self, folder: Path, patience: float = 0) -> None:
        self.folder = folder
        self.patience = patience
        self.path = folder / LOCK
        self._file: IO[str] | None = None

    def __enter__(self) -> FolderLock:
        deadline = time.monotonic() + self.patience
        while self._file is None:
            file = self.path.open("a+")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                owner = file.read().strip() or "another process"
                file.close()
                if time.monotonic() < deadline:
                    time.sleep(0.5)
                    continue
                raise ValueError(
                    f"{self.folder} is being written by {owner}, which holds {self.path}"
                ) from None
            except OSError as error:
                print(f"note   {self.folder} cannot be locked: {error.strerror}")
            if self._is_current(file):
                self._file = file
            else:  # its owner has just removed it
                file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)  # before others can lock it
        self._file.close()
        self._file = None

    def _is_current(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False
