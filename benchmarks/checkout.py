"""The checkout that is measured: where it is, and its commit."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """``DETR_FAST_COMMIT`` where it is set: a copy of the tree may be without git's folder.

    Else what git says, with a plus sign if the tree, its results apart, differs from it; or
    ``"unknown"``.
    """
    if given := os.environ.get("DETR_FAST_COMMIT"):
        return given
    found = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return found + ("+" if changed else "") if found else "unknown"


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # there is no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
