"""Loading the checkpoint that a command uses, and printing which one it is."""

from pathlib import Path
from typing import Any

from detr_fast import processes
from detr_fast.training import TrainConfig, load_checkpoint
from detr_fast.training.checkpoint import best_checkpoint_path

HELP = "a checkpoint, or a run's folder: its best.pt, else its last.pt"


def load_best_checkpoint(path: Path) -> dict[str, Any]:
    """Load the checkpoint that evaluation uses, and print its file and epoch.

    Args:
        path: a checkpoint, or a run's folder.

    Raises:
        CheckpointError: see ``load_checkpoint``.
    """
    file = best_checkpoint_path(path)
    checkpoint = load_checkpoint(file)
    if processes.rank() == 0:
        epoch = checkpoint["step"] / checkpoint["steps_per_epoch"]
        total = TrainConfig.from_dict(checkpoint["config"]).epochs
        print(f"model  {file}, epoch {round(epoch, 2):g} of {total}")
    return checkpoint
