"""Training: configuration, loop, checkpoints, several processes."""

from detr_fast.training.checkpoint import load_checkpoint, load_model, load_trained
from detr_fast.training.config import TrainConfig
from detr_fast.training.engine import Trainer
from detr_fast.training.initial import load_initial

__all__ = [
    "TrainConfig",
    "Trainer",
    "load_checkpoint",
    "load_initial",
    "load_model",
    "load_trained",
]
