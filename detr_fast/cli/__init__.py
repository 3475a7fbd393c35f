"""The command line: ``detr-fast COMMAND``; one file per command."""

import argparse
import sys
from collections.abc import Sequence

from detr_fast import __version__
from detr_fast.cli import ablate, benchmark, evaluate, predict, report, train, visualize
from detr_fast.cli.arguments import add_debug
from detr_fast.data import clean_message
from detr_fast.training import distributed
from detr_fast.training.heap import keep_freed_memory

COMMANDS = (train, evaluate, predict, benchmark, visualize, report, ablate)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 2 where the input was at fault (after one line that says how), 1 where
        another process of the run is gone (likewise), 130 after Ctrl-C, or what the command
        returns.
    """
    parser = argparse.ArgumentParser(
        prog="detr-fast", description="Train, evaluate and use DETR, the detection transformer."
    )
    parser.add_argument("--version", action="version", version=f"detr-fast {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for command in COMMANDS:
        subparser = command.add_parser(subparsers)
        add_debug(subparser, default=False)
        subparser.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    keep_freed_memory()
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("detr-fast: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        # Our own errors say everything themselves; others need the name of their type.
        ours = type(error) is ValueError or type(error).__module__.startswith("detr_fast.")
        message = " ".join(str(error).split("\n")) if ours else clean_message(error)
        _say(f"detr-fast: error: {message}")
        return 2
    except RuntimeError as error:
        if args.debug or not distributed.is_lost(error):
            raise
        lost = isinstance(error, distributed.LostProcess)
        _say(f"detr-fast: {error if lost else 'a process of this run is gone'}")
        return 1
    finally:
        distributed.stop()


def _say(line: str) -> None:
    """Print to the terminal, once however many processes there are."""
    if distributed.says_first(line):
        print(line, file=sys.stderr, flush=True)
