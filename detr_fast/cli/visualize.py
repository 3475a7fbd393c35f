"""``detr-fast visualize``: pictures of what a trained model sees, decides and has learned."""

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from detr_fast.cli.arguments import (
    add_amp,
    add_box_options,
    add_debug,
    add_device,
    count,
    point,
    score,
)
from detr_fast.cli.checkpoints import HELP, load_best_checkpoint, open_evaluation_data
from detr_fast.cli.folders import check_run_folder
from detr_fast.cli.pictures import as_picture, batches, save_picture
from detr_fast.data import DetectionDataset, read_image
from detr_fast.faults import PredictionError
from detr_fast.precision import amp_dtype, autocast
from detr_fast.training import TrainConfig, distributed, load_model
from detr_fast.training.logs import read_metrics
from detr_fast.training.recipes import eval_recipe
from detr_fast.visualize import (
    NoDetection,
    collect_predictions,
    plot_decoder_attention,
    plot_encoder_attention,
    plot_matching,
    plot_query_boxes,
    plot_query_use,
    plot_training,
)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command's options, and those of its four kinds of picture."""
    parser = subparsers.add_parser(
        "visualize",
        help="pictures of attention, queries, matching and training",
        description="Pictures of what a trained model sees, decides and has learned.",
    )
    kinds = parser.add_subparsers(required=True, metavar="WHAT", title="pictures")

    attention = _add_kind(kinds, "attention", _attention, "where queries and encoder cells look")
    attention.add_argument("image", type=Path, help="the image to look at")
    attention.add_argument(
        "--threshold", type=score, default=0.5, help="lowest score shown; default: %(default)s"
    )
    attention.add_argument("--most", type=count, default=8, help="detections shown; default: 8")
    attention.add_argument(
        "--layer", default="-1", help="decoder layer, from 0, or 'all'; default: -1, the last"
    )
    attention.add_argument(
        "--head", default="mean", help="a head, from 0, or 'each'; default: mean"
    )
    attention.add_argument(
        "--point",
        type=point,
        action="append",
        metavar="X,Y",
        help="pixel for the encoder's picture, repeatable; default: four detections",
    )

    queries = _add_kind(kinds, "queries", _queries, "what each query has specialised in")
    queries.add_argument(
        "--images", type=count, default=500, help="number of images, from the first; default: 500"
    )
    queries.add_argument("--most", type=count, default=20, help="queries shown; default: 20")
    queries.add_argument(
        "--threshold", type=score, default=0.0, help="lowest score of the boxes drawn; default: 0"
    )

    matching = _add_kind(kinds, "matching", _matching, "what the matcher decided in an image")
    matching.add_argument(
        "--index", type=int, default=0, help="of the image in the data; default: 0"
    )
    matching.add_argument(
        "--layer", type=int, default=-1, help="decoder layer, from 0; default: -1, the last"
    )

    for kind in (queries, matching):
        kind.add_argument("--data", metavar="SPEC", help="default: what it was validated on")
        kind.add_argument("--split", help="default: the split it was validated on")
        add_box_options(kind)

    text = "losses, AP, matching, rates of a run, on one page"
    curves = kinds.add_parser("curves", help=text, description=text[0].upper() + text[1:] + ".")
    curves.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")
    curves.add_argument("--out", type=Path, default=None, help="a PNG; default: RUN/curves.png")
    add_debug(curves, default=argparse.SUPPRESS)
    curves.set_defaults(draw=_curves)
    return parser


def run(args: argparse.Namespace) -> int:
    """Draw the pictures."""
    if args.draw is not _curves and args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out is {args.out}, a file, expected a folder")
    args.draw(args)
    return 0


def _add_kind(kinds: Any, name: str, draw: Any, text: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("checkpoint", type=Path, help=HELP)
    parser.add_argument(
        "--out", type=Path, default=Path(), help="the folder for the pictures; default: here"
    )
    add_amp(parser, default="none")
    add_device(parser)
    add_debug(parser, default=argparse.SUPPRESS)
    parser.set_defaults(draw=draw)
    return parser


def _attention(args: argparse.Namespace) -> None:
    device = distributed.start(args.device)
    checkpoint = load_best_checkpoint(args.checkpoint)
    model = load_model(checkpoint).to(device)
    pixels = read_image(args.image)
    image, _ = eval_recipe(TrainConfig.from_dict(checkpoint["config"]))(pixels)
    picture = F.to_pil_image(pixels)
    layer = args.layer if args.layer == "all" else _number("layer", args.layer)
    head = args.head if args.head in ("mean", "each") else _number("head", args.head)
    inputs, amp = image.to(device), amp_dtype(args.amp, device)
    nothing = None
    with autocast(device, amp):
        try:
            decoder = plot_decoder_attention(
                model,
                inputs,
                picture,
                checkpoint["class_names"],
                threshold=args.threshold,
                layer=layer,
                head=head,
                most=args.most,
            )
        except NoDetection as error:  # which the encoder's picture does not need
            nothing = error
        except PredictionError as error:
            raise ValueError(f"{args.image}: {error}") from error
        one = "mean" if head == "each" else head
        encoder = plot_encoder_attention(model, inputs, picture, args.point, head=one)
    _save(args.out, {f"{args.image.stem}-encoder": encoder})
    if nothing is not None:
        raise ValueError(f"{args.image}: {nothing}") from nothing
    _save(args.out, {f"{args.image.stem}-decoder": decoder})


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--{name} is {text!r}, expected a number or a word from --help") from None


def _queries(args: argparse.Namespace) -> None:
    model, dataset, device, config = _open(args)
    chosen = torch.utils.data.Subset(dataset, range(min(args.images, len(dataset))))
    found = batches(chosen, device, config.batch_size)
    predictions = collect_predictions(model, found, amp_dtype(args.amp, device), config.matcher())
    _save(
        args.out,
        {
            "queries": plot_query_boxes(predictions, args.most, args.threshold),
            "query-use": plot_query_use(predictions),
        },
    )


@torch.no_grad()
def _matching(args: argparse.Namespace) -> None:
    model, dataset, device, config = _open(args)
    if not 0 <= args.index < len(dataset):
        raise ValueError(f"--index is {args.index}, the data has images 0..{len(dataset) - 1}")
    chosen = torch.utils.data.Subset(dataset, [args.index])
    ((images, mask, targets),) = batches(chosen, device, 1)
    if not len(targets[0]["labels"]):
        raise ValueError(f"image {args.index} has no targets: there is nothing to match")
    with autocast(device, amp_dtype(args.amp, device)):
        outputs = model(images, mask)
    layers = [*outputs.get("aux_outputs", ()), outputs]
    picture = plot_matching(
        as_picture(images[0]),
        layers,
        targets[0],
        dataset.class_names,
        config.matcher(),
        layer=args.layer,
    )
    _save(args.out, {f"matching-{args.index}": picture})


def _curves(args: argparse.Namespace) -> None:
    check_run_folder(args.run_dir)
    rows = read_metrics(args.run_dir / "metrics.jsonl")
    if not rows:
        raise ValueError(f"{args.run_dir / 'metrics.jsonl'} is missing, or has no row")
    out = args.out or args.run_dir / "curves.png"
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--out is {out}, expected a picture such as curves.png")
    save_picture(plot_training(rows, args.run_dir.resolve().name), out)
    print(f"wrote {out}")


def _open(
    args: argparse.Namespace,
) -> tuple[torch.nn.Module, DetectionDataset, torch.device, TrainConfig]:
    device = distributed.start(args.device)
    checkpoint = load_best_checkpoint(args.checkpoint)
    config = TrainConfig.from_dict(checkpoint["config"])
    dataset = open_evaluation_data(args, config, checkpoint["class_names"])
    return load_model(checkpoint).to(device).eval(), dataset, device, config


def _save(folder: Path, pictures: dict[str, Image.Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        save_picture(picture, folder / f"{name}.png")
        print(f"wrote {folder / name}.png")
