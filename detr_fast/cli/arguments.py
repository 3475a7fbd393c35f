"""Options shared by several commands: types of values, how boxes are read, --debug."""

import argparse
import math
from typing import Any

from detr_fast.data.dataset import BOXES
from detr_fast.precision import AMP


def flag(name: str) -> str:
    """Return the option that sets a field of this name: --batch-size for batch_size."""
    return "--" + name.replace("_", "-")


def count(text: str) -> int:
    """Parse a whole number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number >= 1")
    return int(text)


def count_or_zero(text: str) -> int:
    """Parse a whole number >= 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number >= 0")
    return int(text)


def score(text: str) -> float:
    """Parse a number in 0..1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a score in 0..1")
    return number


def point(text: str) -> tuple[float, float]:
    """Parse X,Y in pixels."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected X,Y in pixels") from None
    return x, y


def add_box_options(
    parser: Any, boxes: str = "as in training", voc_origin: str = "as in training"
) -> None:
    """Add the options for how the boxes of annotation files are read, and their defaults' names."""
    parser.add_argument(
        "--boxes",
        choices=BOXES,
        help=f"what to do with boxes outside their images; default: {boxes}",
    )
    parser.add_argument(
        "--voc-origin",
        type=int,
        choices=(0, 1),
        help="1: VOC files count from 1 and include the last pixel, as the original ones do; "
        f"default: {voc_origin}",
    )


def add_amp(parser: Any, default: str | None = None) -> None:
    """Add ``--amp`` for a model that is only evaluated; None: as in training."""
    parser.add_argument(
        "--amp",
        choices=AMP,
        default=default,
        help="precision of the model; auto: bf16 where the hardware multiplies it faster; "
        f"default: {default or 'as in training'}",
    )


def add_device(parser: Any) -> None:
    """Add ``--device``, as ``distributed.start`` takes it."""
    parser.add_argument(
        "--device", default=None, help="cpu | cuda | cuda:1; default: a GPU if there is one"
    )


def box_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return those of these options that were given."""
    values = {name: getattr(args, name) for name in ("boxes", "voc_origin")}
    return {name: value for name, value in values.items() if value is not None}


def add_debug(parser: argparse.ArgumentParser, **default: object) -> None:
    """Add ``--debug``; a command within a command also needs it, with its default suppressed."""
    parser.add_argument(
        "--debug", action="store_true", help="show where an error came from", **default
    )
