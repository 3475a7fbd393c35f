"""Loading the checkpoint that a command uses, printing which one it is, and finding its data."""

import argparse
import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from detr_fast import processes
from detr_fast.cli.arguments import box_options, flag
from detr_fast.data import DataError, DetectionDataset
from detr_fast.training import TrainConfig, load_trained
from detr_fast.training.checkpoint import best_checkpoint_path
from detr_fast.training.datasets import open_val_data

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


def open_evaluation_data(
    args: argparse.Namespace, config: TrainConfig, classes: list[str]
) -> DetectionDataset:
    """Open what a run was validated on, or what the options ``--data`` and ``--split`` say."""
    own = config.val_data or config.data
    with with_data_of_run({"--data": own if args.data is None else None}):
        return open_val_data(config, classes, args.data, args.split, **box_options(args))


def data_of_run(config: TrainConfig, given: Collection[str]) -> dict[str, str | None]:
    """Return option -> data, of the data that a configuration names and that was not given now."""
    return {flag(name): getattr(config, name) for name in ("data", "val_data") if name not in given}


@contextlib.contextmanager
def with_data_of_run(own: dict[str, str | None]) -> Iterator[None]:
    """Add to an error about a run's data that is not there how to say where it is.

    Args:
        own: option -> the run's data that it could replace.
    """
    try:
        yield
    except DataError as error:
        absent = _ABSENT.match(str(error))
        options = [] if absent is None else [o for o, s in own.items() if _names(s, absent[1])]
        if not options:
            raise
        raise DataError(
            f"{error}; that is the path the run was started with: if the data is somewhere else, "
            f"as seen from this folder, give {' and '.join(options)}"
        ) from error


_ABSENT = re.compile("(.*): no such (folder|image folder|annotation file)$")


def _names(spec: str | None, path: str) -> bool:
    """Return whether a path is, or is inside of, one that a data set's ``spec`` names."""
    return any(path.startswith(part) for part in (spec or "").split(":")[1:] if part)


def _description(checkpoint: dict[str, Any]) -> str:
    config = TrainConfig.from_dict(checkpoint["config"])
    if "step" in checkpoint:
        epoch = checkpoint["step"] / checkpoint["steps_per_epoch"]
        return f"epoch {round(epoch, 2):g} of {config.epochs}"
    return (
        f"published weights: {config.model}, {config.num_queries} queries, "
        f"{len(checkpoint['class_names'])} classes"
    )
