"""The options of a training: those of :class:`TrainConfig`, with their defaults."""

import argparse
from typing import Any

from detr_fast.cli.arguments import add_box_options, flag
from detr_fast.data.sources import FORMS
from detr_fast.losses import BOX_LOSSES
from detr_fast.models import MODELS
from detr_fast.models.builders import TINY_BACKBONES
from detr_fast.models.queries import QUERY_MODES
from detr_fast.precision import AMP
from detr_fast.training import TrainConfig
from detr_fast.training.config import LOSS_PARTS, PAPER_DEFAULTS, RECIPES
from detr_fast.training.schedule import SCHEDULES


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`TrainConfig`: of the data, the model and the training."""
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_training(parser.add_argument_group("training"))


def _add_data(data: Any) -> None:
    data.add_argument("--data", metavar="SPEC", help=FORMS)
    data.add_argument(
        "--val-data", metavar="SPEC", help="data to evaluate on; default: the val split of --data"
    )
    data.add_argument("--train-split", help="default: train")
    data.add_argument("--val-split", help="default: val")
    add_box_options(data, "error", "0")
    data.add_argument("--recipe", choices=RECIPES, help=_with_default("image transforms", "recipe"))
    data.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="in the small recipe, whatever an image's proportions; default: each image's own",
    )
    data.add_argument(
        "--flip-vertical",
        action="store_true",
        help="small recipe: also flip half of the images upside down",
    )
    data.add_argument(
        "--cache",
        action="store_true",
        help="keep decoded images in memory, no larger than needed",
    )
    data.add_argument(
        "--cache-gb",
        type=float,
        metavar="GB",
        help="--cache with this much memory per machine; default: half of what is free",
    )
    data.add_argument(
        "--draft",
        action=argparse.BooleanOptionalAction,
        help="decode training JPEGs at 1/2, 1/4 or 1/8 size if that is enough; default: yes",
    )
    data.add_argument(
        "--decode",
        choices=("cpu", "cuda"),
        help="cuda: the GPU decodes and transforms training JPEGs; default: cpu",
    )
    data.add_argument(
        "--pad-multiple",
        type=int,
        metavar="PIXELS",
        help="round batch height and width up to multiples: fewer different sizes",
    )
    data.add_argument(
        "--workers", type=int, help="processes that load images; default: depends on device"
    )


def _add_model(model: Any) -> None:
    model.add_argument("--model", choices=tuple(MODELS), help="default: tiny")
    model.add_argument(
        "--num-queries",
        type=int,
        metavar="N",
        help=_with_default("maximum detections per image", "num_queries"),
    )
    model.add_argument(
        "--query-mode",
        choices=QUERY_MODES,
        help="what a query is: a learned vector or an anchor box; "
        "default: anchor; ResNets: learned",
    )
    model.add_argument("--dropout", type=float, help="of the transformer; default: 0; ResNets: 0.1")
    model.add_argument(
        "--stride",
        type=int,
        choices=tuple(TINY_BACKBONES),
        help="pixels per cell of tiny's feature map; default: 8",
    )
    model.add_argument(
        "--backbone-weights",
        metavar="WEIGHTS",
        help="imagenet (downloaded; the ResNets' default), none, or a torchvision state dict",
    )
    model.add_argument(
        "--init-from",
        metavar="FILE|RUN",
        help="start from the weights of another run, or of a published DETR checkpoint",
    )


def _add_training(training: Any) -> None:
    for name, kind, what in (
        ("epochs", int, ""),
        ("batch_size", int, "images per process and forward pass"),
        ("accumulate", int, "batches per optimizer step, which then count as one"),
        ("lr", float, "learning rate"),
        ("weight_decay", float, "of AdamW"),
        ("clip", float, "largest gradient norm, 0: no clipping"),
        ("warmup_steps", int, "optimizer steps in which the learning rates rise"),
        ("eos_coef", float, 'class weight of "no object"'),
        *((f"cost_{part}", float, "weight in the matching") for part in LOSS_PARTS),
        *((f"weight_{part}", float, "weight in the loss") for part in LOSS_PARTS),
        ("seed", int, "of weights, order and augmentation"),
        ("log_every", int, "optimizer steps between two rows of the log"),
    ):
        training.add_argument(flag(name), type=kind, help=_with_default(what, name))
    training.add_argument(
        "--lr-backbone", type=float, help="default: 1e-5 for a ResNet with weights, else --lr"
    )
    for name, choices, what in (
        ("schedule", SCHEDULES, "how the learning rates fall"),
        ("box_loss", BOX_LOSSES, "besides GIoU"),
        ("amp", AMP, "precision of the model; auto: bf16 where the hardware multiplies it faster"),
    ):
        training.add_argument(flag(name), choices=choices, help=_with_default(what, name))
    training.add_argument(
        "--lr-drop",
        type=float,
        metavar="SHARE",
        help=_with_default("step schedule: tenfold drop at this share of the run", "lr_drop"),
    )
    training.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help=_with_default("of the averaged weights, which are evaluated; 0: none", "ema"),
    )
    training.add_argument(
        "--compile", action="store_true", help="torch.compile: minutes to start, faster steps"
    )
    training.add_argument(
        "--cuda-graph",
        action="store_true",
        help="each step as one CUDA graph, for images of one size (--image-size); excludes "
        "--compile, --checkpointing, --accumulate and several processes",
    )
    training.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing: less memory"
    )
    training.add_argument(
        "--eval-every",
        type=int,
        metavar="EPOCHS",
        help=_with_default("epochs between evaluations", "eval_every"),
    )


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of :class:`TrainConfig` that were given."""
    options = {k: v for k, v in vars(args).items() if k in TrainConfig.__dataclass_fields__}
    if "image_size" in options:
        options["image_size"] = tuple(options["image_size"])
    if options.get("backbone_weights") == "none":
        options["backbone_weights"] = None
    return options


def _with_default(what: str, name: str) -> str:
    """Return an option's help, with its defaults for tiny and, if others, for the ResNets."""
    usual = getattr(TrainConfig, name)
    text = f"default: {usual:.3g}" if isinstance(usual, float) else f"default: {usual}"
    paper = PAPER_DEFAULTS.get(name, usual)
    if paper != usual:
        text += f"; ResNets: {paper:.3g}" if isinstance(paper, float) else f"; ResNets: {paper}"
    return f"{what}; {text}" if what else text
