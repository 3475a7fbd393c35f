"""``detr-fast ablate``: train with one thing changed at a time, and report its effect."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from detr_fast import processes
from detr_fast.cli.arguments import add_box_options, add_device, box_options, count, flag
from detr_fast.cli.pictures import save_picture
from detr_fast.evaluation import import_cocoeval
from detr_fast.models.builders import TINY_BACKBONES
from detr_fast.models.queries import QUERY_MODES
from detr_fast.training import TrainConfig, distributed
from detr_fast.training.ablation import VARIANTS, Ablation, changed_variants
from detr_fast.training.datasets import open_data
from detr_fast.training.engine import Interrupted
from detr_fast.visualize import ablation_report, plot_ablation

DESCRIPTION = """\
Train the tiny model repeatedly, each time with one thing changed: the number of queries, the
decoder's self-attention, the losses and matching costs, the position encoding, the weight of "no
object", or the kind of query. Every variant has the same budget and seeds. Writes results.jsonl, a
table with a short interpretation (README.md) and curves. Run again, it resumes where it stopped.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = subparsers.add_parser(
        "ablate",
        help="measure what each part of DETR contributes",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="shapes", metavar="SPEC", help="default: shapes")
    parser.add_argument("--val-data", metavar="SPEC", help="default: the val split of --data")
    add_box_options(parser, "error", "0")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="default: the size of each image",
    )
    parser.add_argument(
        "--stride",
        type=int,
        choices=tuple(TINY_BACKBONES),
        help="pixels per cell of the feature map; default: 8",
    )
    parser.add_argument("--num-queries", type=int, default=20, help="in the baseline; default: 20")
    parser.add_argument(
        "--query-mode",
        choices=QUERY_MODES,
        default="anchor",
        help="in the baseline; default: anchor",
    )
    parser.add_argument("--epochs", type=int, default=6, help="per training; default: 6")
    parser.add_argument("--batch-size", type=int, default=16, help="default: 16")
    parser.add_argument(
        "--eval-every",
        type=int,
        default=1,
        metavar="EPOCHS",
        help="epochs between evaluations; default: 1",
    )
    parser.add_argument("--repeats", type=count, default=3, help="seeds 0, 1, ...; default: 3")
    names = ", ".join(variant.name for variant in VARIANTS)
    parser.add_argument(
        "--only", nargs="+", metavar="VARIANT", help=f"only the baseline and these, out of {names}"
    )
    parser.add_argument("--out", type=Path, default=Path("ablation"), help="default: ablation")
    add_device(parser)
    parser.set_defaults(parser=parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train what is missing, then write the table and the curves."""
    names = ("data", "val_data", "stride", "num_queries", "query_mode", "epochs", "batch_size")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options |= box_options(args)
    if args.image_size is not None:
        options["image_size"] = tuple(args.image_size)
    config = TrainConfig.create(**options, eval_every=args.eval_every)
    variants = changed_variants(config, args.only)
    for name in args.only or ():
        if name not in {variant.name for variant in variants}:
            print(f"note   {name} is the same as the baseline: left out")
    device = distributed.start(args.device)
    if processes.world_size() > 1:
        raise ValueError("ablate trains in one process: start it without torchrun")
    import_cocoeval()  # if missing, fail now and not after the first training
    ablation = Ablation(config, open_data, args.out, device)
    total = len(variants) * args.repeats
    print(f"{len(variants)} variants, {args.repeats} seeds each: {total} trainings", flush=True)
    try:
        for row in ablation.run(variants, range(args.repeats)):
            print(
                f"{row['variant']:<20} seed {row['seed']}  AP {row['AP']:.3f}  "
                f"AP50 {row['AP50']:.3f}  duplicates {row['duplicates']:.2f}  "
                f"({row['train_seconds']:.0f} s)",
                flush=True,
            )
    except Interrupted:
        print("detr-fast: stopped; run the same command again to resume", file=sys.stderr)
        return 130
    rows = ablation.rows()
    (args.out / "README.md").write_text(ablation_report(rows, config, _command(args)))
    save_picture(plot_ablation(rows), args.out / "curves.png")
    print(f"\nwrote {args.out}/: results.jsonl, README.md, curves.png")
    return 0


def _command(args: argparse.Namespace) -> str:
    """Return the command as it was given, without where it writes and runs."""
    words = ["detr-fast", "ablate"]
    for name, value in vars(args).items():
        if name in ("out", "device", "debug", "run", "parser"):
            continue
        if value != args.parser.get_default(name):
            values = value if isinstance(value, list) else [value]
            words += [flag(name), *map(str, values)]
    return shlex.join(words)
