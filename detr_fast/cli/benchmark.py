"""``detr-fast benchmark``: where the time of a training step goes, on one's own data."""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from detr_fast.cli.arguments import add_device, count
from detr_fast.cli.config_options import add_config_options, given_options
from detr_fast.training import TrainConfig, Trainer, distributed
from detr_fast.training.clock import PHASES, PhaseClock
from detr_fast.training.datasets import open_train_data
from detr_fast.training.graph import WARM_UP

BAR = 40  # characters of the longest bar


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command's options: those of ``train`` for data, model and training."""
    parser = subparsers.add_parser(
        "benchmark",
        help="where the time of a training step goes",
        description="Train for a few steps, keep nothing, and say where the time went.",
        argument_default=argparse.SUPPRESS,
    )
    add_config_options(parser)
    parser.add_argument("--steps", type=count, default=20, help="to measure (default: 20)")
    add_device(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    config = TrainConfig.create(**given_options(args))
    device = distributed.start(args.device)
    data = open_train_data(config)
    trainer = Trainer(config, data, data, Path("unused"), device, quiet=True)
    print(f"data   {data.describe()}")
    number = "bfloat16 autocast" if trainer.amp else "float32"
    print(
        f"model  {config.model}, batches of {config.batch_size}, on {device} in {number}, "
        f"{torch.get_num_threads()} CPU threads"
    )
    seconds, whole, images = measure(trainer, args.steps)
    print("\n" + table(seconds, whole, images))
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")
    return 0


def measure(
    trainer: Trainer, steps: int, warm_up: int = 3
) -> tuple[dict[str, float], float, float]:
    """Return the median seconds of each phase and of the whole step over so many steps, and the
    mean number of a step's images."""
    clock = PhaseClock(trainer.device)
    matcher = trainer.criterion.matcher
    if trainer.graphed is not None:
        warm_up = WARM_UP + 2  # the graph is captured after its own
    elif not trainer.train_step.compiled:  # neither compiled code nor a graph can hold a clock
        matcher.match_packed = clock.around(matcher.match_packed, "match", "loss")
    trainer.parallel.train()
    batches = _for_ever(trainer)
    phases: list[dict[str, float]] = []
    wholes, images = [], 0
    for step in range(warm_up + steps):
        begin = time.perf_counter()
        clock.start()
        loaded = [next(batches) for _ in range(trainer.config.accumulate)]
        clock.mark("data")
        trainer.train_on(loaded, clock.mark)
        taken = clock.stop()
        if step >= warm_up:
            phases.append(taken)
            wholes.append(time.perf_counter() - begin)
            images += sum(len(batch.images) for batch in loaded)
    names = [name for name in PHASES if any(name in taken for taken in phases)]
    seconds = {name: statistics.median(t.get(name, 0.0) for t in phases) for name in names}
    return seconds, statistics.median(wholes), images / steps


def _for_ever(trainer: Trainer) -> Iterator:
    for epoch in itertools.count():
        yield from trainer.prefetcher.batches(trainer.loader.epoch(epoch))


def table(seconds: dict[str, float], whole: float, images: float) -> str:
    """The phases as a table with bars, and the speed."""
    total, longest = sum(seconds.values()), max(seconds.values())
    lines = [f"{'phase':10}{'ms':>9}{'share':>8}"]
    for name, value in seconds.items():
        bar = "█" * max(1, round(BAR * value / longest))
        lines.append(f"{name:10}{value * 1e3:9.1f}{value / total:8.1%}  {bar}")
    lines.append(f"{'step':10}{whole * 1e3:9.1f}           {images / whole:.1f} images/s")
    data = seconds.get("data", 0.0) / total
    which = "the step is the bottleneck"
    if data > 0.5:
        which = "the loader is the bottleneck: try more --workers, or --cache"
    lines.append(f"data {data:.0%} | step {1 - data:.0%}: {which}")
    return "\n".join(lines)
