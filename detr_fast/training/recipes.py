"""The image transforms that a configuration names, for training and for evaluation.

With ``normalize=False`` images may come as uint8, to be normalised on the device. A recipe other
than ``"small"`` and ``"detr"`` raises a ValueError.
"""

from detr_fast.data import Recipe, detr_eval, detr_train, fixed_eval, small_train
from detr_fast.training.config import RECIPES, TrainConfig


def train_recipe(config: TrainConfig, normalize: bool = True) -> Recipe:
    """Return the random transforms of training."""
    if config.recipe == "detr":
        return detr_train(normalize=normalize)
    if config.recipe == "small":
        return small_train(config.image_size, vertical=config.flip_vertical, normalize=normalize)
    raise _unknown(config.recipe)


def eval_recipe(config: TrainConfig, normalize: bool = True) -> Recipe:
    """Return the fixed transforms of evaluation and prediction."""
    if config.recipe == "detr":
        return detr_eval(normalize=normalize)
    if config.recipe == "small":
        return fixed_eval(config.image_size, normalize=normalize)
    raise _unknown(config.recipe)


def _unknown(recipe: str) -> ValueError:
    return ValueError(f"recipe is {recipe!r}, expected one of {', '.join(RECIPES)}")
