"""The folder of a run, and new ones for results, so that nothing existing is overwritten."""

from pathlib import Path


def check_run_folder(path: Path) -> None:
    """Raise ValueError for what is no folder."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder, expected a run's folder")


def new_folder(wanted: Path) -> Path:
    """Make ``wanted`` or, if that exists, ``wanted-2``, ``wanted-3`` and so on."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
