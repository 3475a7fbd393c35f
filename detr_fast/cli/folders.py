"""New folders for results, so that nothing existing is overwritten."""

from pathlib import Path


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
