"""What several commands' options have in common: types of values, and ``--debug``."""

import argparse
import math


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1 on")
    return int(text)


def score(text: str) -> float:
    """A number in 0..1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a score in 0..1")
    return number


def point(text: str) -> tuple[float, float]:
    """X,Y in pixels."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no X,Y in pixels") from None
    return x, y


def add_debug(parser: argparse.ArgumentParser, **default: object) -> None:
    """Add ``--debug``; a command inside a command needs it too, without a default of its own."""
    parser.add_argument(
        "--debug", action="store_true", help="show where an error came from", **default
    )
