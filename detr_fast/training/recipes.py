"""Which image transforms a configuration names, for training and for evaluation."""

from ..data import Recipe, detr_eval, detr_train, fixed_eval, small_train
from .config import TrainConfig


def train_recipe(config: TrainConfig) -> Recipe:
    """The random transforms of training."""
    if config.recipe == "detr":
        return detr_train()
    return small_train(config.image_size, vertical=config.flip_vertical)


def eval_recipe(config: TrainConfig) -> Recipe:
    """The fixed transforms of evaluation and prediction."""
    if config.recipe == "detr":
        return detr_eval()
    return fixed_eval(config.image_size)
