"""Training: configuration, loop, checkpoints, several processes."""

from .checkpoint import load_checkpoint, load_model
from .config import TrainConfig
from .engine import Trainer

__all__ = ["TrainConfig", "Trainer", "load_checkpoint", "load_model"]
