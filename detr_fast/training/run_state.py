"""What a checkpoint holds of a run, to resume it exactly where it stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detr_fast import processes
from detr_fast.models.weights import CheckpointError
from detr_fast.training.checkpoint import misfit_means
from detr_fast.training.instability import MatchingInstability
from detr_fast.training.schedule import set_step

if TYPE_CHECKING:
    from detr_fast.training.engine import Trainer


def run_state(
    trainer: Trainer,
    rng: list[dict[str, Tensor]],  # of each process
) -> dict[str, Any]:
    """Return the entries of a checkpoint; see ``checkpoint.ENTRIES``."""
    ema = trainer.ema
    return {
        "model": trainer.model.state_dict(),
        "ema": None if ema is None else ema.module.state_dict(),
        "ema_updates": 0 if ema is None else ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "step": trainer.step,
        "evaluation_due": trainer.evaluation_due,
        "steps_per_epoch": trainer.steps_per_epoch,
        "rng": rng,
        "best_ap": trainer.best_ap,
        "images_seen": trainer.images_seen,
        "seconds": trainer.seconds,
        "matching": trainer.watch.state(),
        "config": trainer.config.to_dict(),
        "model_args": trainer.model_args,
        "class_names": list(trainer.train_set.class_names),
        "category_ids": list(trainer.train_set.category_ids),
    }


def restore(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Bring a new trainer of the same configuration to where the checkpoint was written.

    Raises:
        CheckpointError: a checkpoint of a run with other data or another number of processes, or of
            another model.
    """
    then = len(checkpoint["rng"]), checkpoint["steps_per_epoch"]
    now = processes.world_size(), trainer.steps_per_epoch
    if then != now:
        raise CheckpointError(
            f"{trainer.run_dir} ran in {then[0]} processes with {then[1]} steps per epoch, here "
            f"it would be {now[0]} and {now[1]}: resume with the same data and processes"
        )
    with misfit_means(
        f"{trainer.run_dir} cannot be resumed, its weights fit no model of this version"
    ):
        trainer.model.load_state_dict(checkpoint["model"])
        if trainer.ema is not None:
            trainer.ema.module.load_state_dict(checkpoint["ema"])
            trainer.ema.updates = checkpoint["ema_updates"]
        trainer.optimizer.load_state_dict(checkpoint["optimizer"])
    trainer.step = checkpoint["step"]
    trainer.evaluation_due = checkpoint["evaluation_due"]
    set_step(trainer.scheduler, trainer.step)
    trainer.best_ap = checkpoint["best_ap"]
    trainer.watch = MatchingInstability(checkpoint["matching"])
    trainer.images_seen, trainer.seconds = checkpoint["images_seen"], checkpoint["seconds"]
    set_rng_state(checkpoint["rng"][processes.rank()], trainer.device)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's default generators of the CPU and of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore the generators to what ``rng_state`` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
