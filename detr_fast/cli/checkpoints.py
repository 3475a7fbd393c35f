"""Loading the checkpoint that a command uses, printing which one it is, and finding its data."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detr_fast import processes
from detr_fast.data import DataError
from detr_fast.training import TrainConfig, load_trained
from detr_fast.training.checkpoint import best_checkpoint_path

HELP = "a run's folder: its best.pt, else its last.pt; or a checkpoint, a published one as well"


def load_best_checkpoint(path: Path) -> dict[str, Any]:
    """Load the checkpoint that evaluation uses, and print its file and epoch.

    Args:
        path: a run's folder, or a checkpoint, see ``load_trained``.

    Raises:
        CheckpointError: see ``load_trained``.
    """
    checkpoint = load_trained(path)
    if processes.rank() == 0:
        print(f"model  {best_checkpoint_path(path)}, {_description(checkpoint)}")
    return checkpoint


@contextlib.contextmanager
def with_data_of_run(own: bool) -> Iterator[None]:
    """Add to an error about data that is not there how to say where it is.

    Args:
        own: whether the path is the run's, and not one that was given now.
    """
    try:
        yield
    except DataError as error:
        if not own or not _ABSENT.search(str(error)):
            raise
        raise DataError(
            f"{error}; that is the path the run was started with: if the data is somewhere else, "
            "as seen from this folder, give --data"
        ) from error


_ABSENT = re.compile(": no such (folder|image folder|annotation file)$")


def _description(checkpoint: dict[str, Any]) -> str:
    config = TrainConfig.from_dict(checkpoint["config"])
    if "step" in checkpoint:
        epoch = checkpoint["step"] / checkpoint["steps_per_epoch"]
        return f"epoch {round(epoch, 2):g} of {config.epochs}"
    return (
        f"published weights: {config.model}, {config.num_queries} queries, "
        f"{len(checkpoint['class_names'])} classes"
    )
