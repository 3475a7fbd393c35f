"""Loading the checkpoint that a command uses, and printing which one it is."""

from pathlib import Path
from typing import Any

from detr_fast import processes
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


def _description(checkpoint: dict[str, Any]) -> str:
    config = TrainConfig.from_dict(checkpoint["config"])
    if "step" in checkpoint:
        epoch = checkpoint["step"] / checkpoint["steps_per_epoch"]
        return f"epoch {round(epoch, 2):g} of {config.epochs}"
    return (
        f"published weights: {config.model}, {config.num_queries} queries, "
        f"{len(checkpoint['class_names'])} classes"
    )
