"""Small training runs for tests, and what they logged and saved."""

import json
from pathlib import Path

import torch

from detr_fast.data import Shapes, fixed_eval, small_train
from detr_fast.training import TrainConfig, Trainer


def train_rows(run: Path) -> list[dict]:
    """The training rows of a run, without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = {"images_per_second", "seconds", "train_seconds", "data_share"}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def small_trainer(
    run: Path, checkpoint=None, quiet: bool = True, device: str = "cpu", **options
) -> Trainer:
    """A trainer on 24 images of shapes."""
    run.mkdir(parents=True, exist_ok=True)
    config = TrainConfig.create(
        **{"batch_size": 4, "epochs": 3, "num_queries": 6, "workers": 0, "log_every": 1} | options
    )
    sets = [
        Shapes(24, image_size=48, seed=0, transforms=small_train(None), fresh=True),
        Shapes(8, image_size=48, seed=1, transforms=fixed_eval(None)),
    ]
    return Trainer(config, *sets, run, torch.device(device), checkpoint, quiet)


def saved_steps(trainer: Trainer) -> list[int]:
    """Fills with the steps at which a checkpoint is written."""
    save, steps = trainer._save, []

    def remember(name: str) -> None:
        steps.append(trainer.step)
        save(name)

    trainer._save = remember
    return steps
