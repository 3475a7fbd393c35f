"""The image transforms that a configuration names, for training and for evaluation.

With ``normalize=False`` images may come as uint8, to be normalised on the device.
"""

from detr_fast.data import Recipe, detr_eval, detr_train, fixed_eval, small_train
from detr_fast.training.config import TrainConfig


def train_recipe(config: TrainConfig, normalize: bool = True) -> Recipe:
    """Return the random transforms of training."""
    if config.recipe == "detr":
        return detr_train(normalize=normalize)
    return small_train(config.image_size, vertical=config.flip_vertical, normalize=normalize)


def eval_recipe(config: TrainConfig, normalize: bool = True) -> Recipe:
    """Return the fixed transforms of evaluation and prediction."""
    if config.recipe == "detr":
        return detr_eval(normalize=normalize)
    return fixed_eval(config.image_size, normalize=normalize)
