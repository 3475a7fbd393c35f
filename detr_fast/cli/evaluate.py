"""``detr-fast eval``: the COCO figures of a checkpoint."""

import argparse
import json
from pathlib import Path
from typing import Any

from detr_fast import processes
from detr_fast.cli.arguments import (
    add_amp,
    add_box_options,
    add_device,
    count,
    count_or_zero,
)
from detr_fast.cli.checkpoints import HELP, load_best_checkpoint, open_evaluation_data
from detr_fast.evaluation import evaluate, format_metrics
from detr_fast.files import check_writable
from detr_fast.precision import amp_dtype
from detr_fast.training import TrainConfig, distributed, load_model
from detr_fast.training.loader import default_workers


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = subparsers.add_parser(
        "eval",
        help="COCO figures of a checkpoint",
        description="Evaluate a checkpoint with pycocotools' COCOeval.",
    )
    parser.add_argument("checkpoint", type=Path, help=HELP)
    parser.add_argument("--data", metavar="SPEC", help="default: the data it was validated on")
    parser.add_argument("--split", help="default: the split it was validated on")
    add_box_options(parser)
    parser.add_argument("--batch-size", type=count, help="default: as in training")
    parser.add_argument(
        "--workers", type=count_or_zero, help="processes that load images; default: by the device"
    )
    add_amp(parser)
    add_device(parser)
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write the figures here")
    parser.add_argument(
        "--detections",
        type=Path,
        metavar="JSON",
        help="also write all detections here, in COCO's format of results",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    for name in ("out", "detections"):  # fail before evaluating, not after
        file = getattr(args, name)
        if file is not None and file.is_dir():
            raise ValueError(f"--{name} is {file}, a folder, expected a file")
        if file is not None:
            check_writable(file)
    files = [file.resolve() for file in (args.out, args.detections) if file is not None]
    if len(files) > len(set(files)):
        raise ValueError(f"--out and --detections are both {args.out}")
    device = distributed.start(args.device)
    checkpoint = load_best_checkpoint(args.checkpoint)
    config = TrainConfig.from_dict(checkpoint["config"])
    dataset = open_evaluation_data(args, config, checkpoint["class_names"])
    main = processes.rank() == 0
    if main:
        print(f"data   {dataset.describe()}")
    row = evaluate(
        load_model(checkpoint).to(device),
        dataset,
        device,
        args.batch_size or config.batch_size,
        default_workers(device) if args.workers is None else args.workers,
        amp_dtype(args.amp or config.amp, device),
        results=args.detections,
        progress=main,
    )
    if main:
        print("\n" + format_metrics(row, row["per_class"], dataset.boxes_per_class()))
        if args.out is not None:
            args.out.write_text(json.dumps(row, indent=2) + "\n")
    return 0
