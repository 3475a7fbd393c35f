"""The command line: ``detr-fast COMMAND``; one file per command."""

import argparse
import io
import sys
import warnings
from collections.abc import Sequence

from tqdm import tqdm

from detr_fast import __version__
from detr_fast.cli import ablate, benchmark, evaluate, predict, report, train, visualize
from detr_fast.cli.arguments import add_debug
from detr_fast.data import clean_message, is_worker_lost
from detr_fast.training import distributed
from detr_fast.training.heap import keep_freed_memory
from detr_fast.training.memory import is_out_of_memory

COMMANDS = (train, evaluate, predict, benchmark, visualize, report, ablate)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: what the command returns, 2 if the input or the machine is at fault or a
        package is missing (after one line that explains it), 1 if another process of the run is
        gone (likewise), or 130 after Ctrl-C.
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
    if argv is None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # "?" for what cannot be shown
                stream.reconfigure(errors="replace")
        warnings.showwarning = _show_warning
    keep_freed_memory()
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("detr-fast: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if args.debug:
            raise
        # The package's own errors are complete messages; others need the name of their type.
        own = type(error) is ValueError or type(error).__module__.startswith("detr_fast.")
        message = " ".join(str(error).split("\n")) if own else clean_message(error)
        _say(f"detr-fast: error: {message}")
        return 2
    except (RuntimeError, MemoryError) as error:
        if args.debug:
            raise
        if distributed.is_process_lost(error):
            lost = isinstance(error, distributed.LostProcess)
            _say(f"detr-fast: {error if lost else 'a process of this run is gone'}")
            return 1
        advice = _advice(error)
        if advice is None:
            raise
        _say(f"detr-fast: error: {advice} ({clean_message(error)})")
        return 2
    finally:
        distributed.stop()


def _advice(error: BaseException) -> str | None:
    """Return advice about an error of the machine; None for any other: a fault of this package."""
    if is_out_of_memory(error):
        return "out of memory: use fewer or smaller images, a smaller model or another --device"
    if is_worker_lost(error):
        return "a data worker died, perhaps for lack of memory: use fewer --workers"
    # By name: where no model was compiled, importing torch._dynamo would take seconds.
    if any(kind.__module__ == "torch._dynamo.exc" for kind in type(error).__mro__):
        return "torch.compile failed: leave out --compile"
    return None


def _show_warning(message: Warning | str, *_: object) -> None:
    """Print a warning above a progress bar, without the line of code that it comes from."""
    tqdm.write(f"detr-fast: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _say(line: str) -> None:
    """Print to standard error, once for all processes of the run."""
    if distributed.is_first_to_report(line):
        print(line, file=sys.stderr, flush=True)
