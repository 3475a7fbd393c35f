"""Checkpoints: written whole or not at all, and safe to load."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detr_fast.files import written_whole
from detr_fast.models import MODELS
from detr_fast.models.weights import CheckpointError, read_weights
from detr_fast.training.config import TrainConfig
from detr_fast.training.memory import is_out_of_memory
from detr_fast.training.published import published_checkpoint

FORMAT = 1
ENTRIES = (  # what a checkpoint holds besides the format
    *("model", "ema", "ema_updates", "optimizer", "step", "evaluation_due", "steps_per_epoch"),
    *("rng", "best_ap", "images_seen", "seconds", "matching", "config", "model_args"),
    *("class_names", "category_ids"),
)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``, whole or not at all: see ``written_whole``."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())


def copy_checkpoint(source: Path, path: Path) -> None:
    """Copy a checkpoint to ``path``, whole or not at all, as ``save_checkpoint`` writes it.

    The copy is a hard link where possible: checkpoints are replaced, never modified in place.
    """
    with written_whole(path) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)


def best_checkpoint_path(path: str | Path) -> Path:
    """Return the checkpoint that evaluation, prediction and fine-tuning use.

    Args:
        path: a file, which is returned itself, or a run's folder: its ``best.pt`` if there is one,
            else its ``last.pt``.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    best = path / "best.pt"
    return best if best.exists() else path / "last.pt"


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, with ``weights_only=True``: no code in it is run.

    Args:
        path: the file, or a run's folder: its ``last.pt``, from which the run resumes.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one of another format.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "last.pt"
    return _checked(path, read_weights(path))


def load_trained(path: str | Path) -> dict[str, Any]:
    """Read the checkpoint that evaluation and prediction use, with ``weights_only=True``.

    Args:
        path: a run's folder, or a checkpoint, see ``best_checkpoint_path``; or one of the published
            DETR code, of which the entries about training are missing.

    Raises:
        CheckpointError: as ``load_checkpoint``, or weights of another model.
    """
    file = best_checkpoint_path(path)
    state = read_weights(file)
    return _checked(file, state) if "format" in state else published_checkpoint(file, state)


def _checked(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Return a run's checkpoint, as it was read, if this version can use it."""
    if "format" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of detr_fast training")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {state['format']}, this version reads {FORMAT}")
    missing = [name for name in ENTRIES if name not in state]
    if missing:
        raise CheckpointError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    if not isinstance(state["config"], dict):
        kind = type(state["config"]).__name__
        raise CheckpointError(f"{path} holds a {kind} as its config, expected a dictionary")
    unknown = set(map(str, state["config"])) - set(TrainConfig.__dataclass_fields__)
    if unknown:
        what = ", ".join(sorted(unknown))
        raise CheckpointError(f"{path} is from another version of detr_fast, with options {what}")
    try:
        TrainConfig.from_dict(state["config"])
    except ValueError as error:
        raise CheckpointError(f"{path} is from another version of detr_fast: {error}") from error
    return state


def load_model(checkpoint: dict[str, Any]) -> nn.Module:
    """Return a checkpoint's trained model, in evaluation mode, averaged weights if it has them.

    Raises:
        CheckpointError: its arguments or its weights fit no model of this version.
    """
    with misfit_means("the checkpoint has no model of this version"):
        model = MODELS[checkpoint["config"]["model"]](**checkpoint["model_args"])
        model.load_state_dict(checkpoint["ema"] or checkpoint["model"])
    return model.eval()


@contextlib.contextmanager
def misfit_means(what: str) -> Iterator[None]:
    """Raise CheckpointError, with ``what`` and why, if a state does not fit what loads it."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{what}: {error}") from error
