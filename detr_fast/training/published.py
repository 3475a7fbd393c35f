"""Checkpoints of the published DETR code, as those of a run that began with their weights."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from detr_fast.models import MODELS
from detr_fast.models.weights import CheckpointError, weights_in, without_counters
from detr_fast.training.config import TrainConfig

# The labels of the published weights are COCO's category ids, of which some are not used.
_BY_ID = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_CLASSES = tuple(
    f"unused {label}" if name in ("__background__", "N/A") else str(name)
    for label, name in enumerate(_BY_ID)
)

# Blocks of the third stage, and whether they are bottlenecks.
_RESNETS = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
}
_LEARNED_POSITIONS = "backbone.1.row_embed.weight"
_SIZES = {  # arguments of the model by the published code's names
    "hidden_dim": "dim",
    "nheads": "num_heads",
    "enc_layers": "num_encoder_layers",
    "dec_layers": "num_decoder_layers",
    "dim_feedforward": "dim_feedforward",
}


def published_checkpoint(file: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's checkpoint says about its model, for the weights of a published DETR.

    The ResNet, the queries and the classes are counted in the weights. What these do not show is
    taken from the options that the published code saves with its checkpoints; the files that it
    offers for download have none: then the sizes are the paper's, and a dilated last stage (DC5) is
    recognised by ``dc5`` in the name of the file.

    Args:
        file: where the weights are from.
        state: ``{"model": state dict, "args": options}``, without ``args``, or a state dict alone.

    Returns:
        ``model``, ``ema``, ``config`` (of no data), ``model_args``, ``class_names`` and
        ``category_ids``, as in a run's checkpoint. The classes of 91 are COCO's by category id.

    Raises:
        CheckpointError: not the weights of such a model; the message names the file.
    """
    weights = weights_in(file, state)
    for name in ("class_embed.weight", "query_embed.weight"):
        if name not in weights:
            raise CheckpointError(
                f"{file} is neither a checkpoint of detr_fast training nor of a published DETR: it "
                f"has no {name}"
            )
    options = state.get("args") or {}
    if isinstance(options, Namespace):
        options = vars(options)
    if not isinstance(options, dict):
        raise CheckpointError(f"{file}: args is a {type(options).__name__}, expected options")
    classes = len(weights["class_embed.weight"]) - 1  # without "no object"
    config = TrainConfig.create(
        data="",
        model=_model_name(file, weights, options),
        num_queries=len(weights["query_embed.weight"]),
        init_from=str(file),
        position_encoding="learned" if _LEARNED_POSITIONS in weights else "sine",
    )
    model_args = config.model_args(classes)
    model_args |= {ours: options[theirs] for theirs, ours in _SIZES.items() if theirs in options}
    _check_fit(file, weights, config.model, model_args)
    known = classes == len(COCO_CLASSES)
    return {
        "model": weights,
        "ema": None,
        "config": config.to_dict(),
        "model_args": model_args,
        "class_names": list(COCO_CLASSES) if known else [f"class {k}" for k in range(classes)],
        "category_ids": list(range(classes)),
    }


def _check_fit(file: Path, weights: dict[str, Any], model: str, model_args: dict[str, Any]) -> None:
    """Raise CheckpointError, with the first tensor, unless the weights are those of the model."""
    try:
        with torch.device("meta"):
            expected = without_counters(MODELS[model](**model_args).state_dict())
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file}: no {model} has its options: {error}") from error
    for name in sorted(expected.keys() | weights.keys()):
        there, here = (
            list(state[name].shape) if name in state else "missing" for state in (weights, expected)
        )
        if there != here:
            raise CheckpointError(
                f"{file} is not of a published DETR: {name} is {there}, expected {here} in {model}"
            )


def _model_name(file: Path, weights: dict[str, Any], options: dict[str, Any]) -> str:
    body = "backbone.0.body"
    blocks = {name.split(".")[4] for name in weights if name.startswith(f"{body}.layer3.")}
    bottleneck = f"{body}.layer3.0.conv3.weight" in weights
    # A word of its own: the names of published files end in hexadecimal digits.
    named = re.search(r"(?<![0-9a-z])dc5(?![0-9a-z])", file.name.lower()) is not None
    dilated = options.get("dilation", named)
    name = _RESNETS.get((len(blocks), bottleneck), "") + ("_dc5" if dilated else "")
    if name not in MODELS:
        raise CheckpointError(
            f"{file}: a model with {len(blocks)} blocks in its backbone's layer3"
            f"{', dilated,' if dilated else ''} is none of {', '.join(MODELS)}"
        )
    return name
