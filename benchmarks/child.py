"""A command with a time limit, which ends all that it started, and a log that outlives it."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run(
    command: Sequence[str],
    log: Path,
    seconds: float,
    folder: Path,
    environment: Mapping[str, str],
) -> str:
    """Runs a command in ``folder``; its output is appended to ``log`` as it comes.

    What it started ends with it, whether it ends by itself or after ``seconds``, or this process is
    told to. It is a process group, not a session, of its own: whoever ends the session of this
    process ends it, too.

    Returns:
        ``"ok"``, or what went wrong: ``"exit 3"``, ``"cut off after 70 s"``, ``"not started: "``
        with the reason.
    """
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=os.setpgrp,
            )
        except OSError as error:
            return f"not started: {error}"
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"cut off after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing is left of it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "ok" if code == 0 else f"exit {code}"
