"""``detr-fast report``: everything about a run in one HTML file."""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from detr_fast import __version__
from detr_fast.cli.arguments import add_device, count
from detr_fast.cli.checkpoints import data_of_run, load_best_checkpoint, with_data_of_run
from detr_fast.cli.folders import check_run_folder
from detr_fast.cli.pictures import as_picture, batches
from detr_fast.data import DetectionDataset
from detr_fast.evaluation import METRICS, format_figure
from detr_fast.files import written_whole
from detr_fast.models import PostProcess
from detr_fast.precision import amp_dtype
from detr_fast.training import TrainConfig, distributed, load_model
from detr_fast.training.datasets import open_data
from detr_fast.training.logs import read_metrics
from detr_fast.visualize import (
    collect_predictions,
    image_grid,
    plot_dataset,
    plot_decoder_attention,
    plot_encoder_attention,
    plot_query_boxes,
    plot_query_use,
    plot_training,
)
from detr_fast.visualize.comparison import image_quality, truth_and_detections
from detr_fast.visualize.page import Page

Found = tuple[float, int, dict[str, Tensor]]  # quality, index in the data, detections in 0..1


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML page about a run",
        description="Write one self-contained HTML page about a run, with its best checkpoint: "
        "RUN/report.html.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--out", type=Path, help="default: RUN/report.html")
    for name, what in (("--data", "training"), ("--val-data", "validation")):
        parser.add_argument(name, metavar="SPEC", help=f"default: where the run's {what} data was")
    parser.add_argument(
        "--images", type=count, default=200, help="validation images to use; default: 200"
    )
    add_device(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    check_run_folder(args.run_dir)
    out = args.out or args.run_dir / "report.html"
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ValueError(f"--out is {out}, expected a file in an existing folder")
    rows = read_metrics(args.run_dir / "metrics.jsonl")
    device = distributed.start(args.device)
    checkpoint = load_best_checkpoint(args.run_dir)
    config = TrainConfig.from_dict(checkpoint["config"])
    given = {"data": args.data, "val_data": args.val_data}
    given = {name: spec for name, spec in given.items() if spec is not None}
    own = data_of_run(config, given)
    config = replace(config, **given)
    model = load_model(checkpoint).to(device)
    with with_data_of_run(own):
        train_set, val_set = open_data(config, checkpoint["class_names"])
    page = Page(f"{args.run_dir.resolve().name}: {config.model} on {config.data}")
    vals = [row for row in rows if row["kind"] == "val"]
    _results(page, vals, val_set, checkpoint["step"])
    page.section("Training")
    page.picture(plot_training(rows), "losses, accuracy, matching and optimizer over the epochs")
    chosen = torch.utils.data.Subset(val_set, range(min(args.images, len(val_set))))
    ranking = Ranking()
    predictions = collect_predictions(
        model,
        batches(chosen, device, config.batch_size),
        amp_dtype(config.amp, device),
        config.matcher(),
        ranking.add,
    )
    _images(page, model, val_set, ranking.worst_first(), device)
    page.section("Queries")
    page.picture(plot_query_boxes(predictions), "centres of each query's boxes")
    page.picture(plot_query_use(predictions), "how often each query is used")
    page.section("Data")
    page.tables((("split", "what"), [("train", train_set.describe()), ("val", val_set.describe())]))
    page.picture(plot_dataset({"train": train_set, "val": val_set}), "classes, counts, box sizes")
    _speed(page, rows, vals, model, checkpoint)
    page.section("Configuration")
    settings = [
        (name, "not set" if value is None else str(value))
        for name, value in sorted(config.to_dict().items())
    ]
    third = -(-len(settings) // 3)
    page.tables(
        *((("option", "value"), settings[i : i + third]) for i in range(0, len(settings), third))
    )
    page.text(f"Written by detr_fast {__version__}, torch {torch.__version__}.")
    with written_whole(out) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")
    print(f"wrote {out}")
    return 0


def _results(page: Page, vals: list[dict[str, Any]], val_set: DetectionDataset, step: int) -> None:
    """Add the figures of the checkpoint after ``step`` steps, whose weights the pictures show."""
    page.section("Results")
    if not vals:
        page.text("This run has not been evaluated yet.")
        return
    last = vals[-1]
    evaluated = [row for row in vals if row["step"] == step]
    shown = (evaluated or vals)[-1]
    page.numbers(
        {
            "AP": format_figure(shown["AP"]),
            "AP50": format_figure(shown["AP50"]),
            "AP75": format_figure(shown["AP75"]),
            "epochs": f"{shown['epoch']:g}",
            "of training": _duration(shown["train_seconds"]),
        }
    )
    if evaluated:
        which = f"The model shown is the one after epoch {shown['epoch']:g}; the last AP was "
        which += f"{format_figure(last['AP'])}, after epoch {last['epoch']:g}."
    else:
        which = f"The model shown is the one after step {step:,}, which was not evaluated; the "
        which += f"figures are the last ones, from epoch {last['epoch']:g}."
    page.text(
        f"{which} COCO figures on the {len(val_set):,} validation images; '-' where there are no "
        "such objects."
    )
    boxes = val_set.boxes_per_class()
    classes = sorted(shown["per_class"].items(), key=lambda item: -item[1])
    page.tables(
        (("COCO figure", "value"), [(name, format_figure(shown[name])) for name in METRICS]),
        (
            ("class", "boxes", "AP"),
            [(name, f"{boxes.get(name, 0):,}", format_figure(ap)) for name, ap in classes],
        ),
    )


class Ranking:
    """The detections in images, with how well each image's fit its targets."""

    def __init__(self) -> None:
        self._found: list[Found] = []

    def add(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> None:
        """Add a batch: outputs of the last layer and targets, on the CPU."""
        results = PostProcess()(outputs, torch.ones(len(targets), 2))
        for target, result in zip(targets, results, strict=True):
            corners = box_convert(target["boxes"], "cxcywh", "xyxy")
            quality = image_quality(result, target["labels"], corners)
            self._found.append((quality, len(self._found), result))

    def worst_first(self) -> list[Found]:
        """Return what was found in all images, in the order of quality."""
        return sorted(self._found, key=lambda item: item[:2])


@torch.no_grad()
def _images(
    page: Page,
    model: nn.Module,
    val_set: DetectionDataset,
    ranked: list[Found],  # worst first
    device: torch.device,
) -> None:
    """Add the worst and the best images, and attention in at most two."""
    page.section("Images")
    page.text(
        "Targets left, detections of score 0.5 or more right. Sorted by quality: detections and "
        "targets of the same class are paired one to one, and the sum of their IoU is divided by "
        f"the larger of the two numbers. Out of {len(ranked):,} images."
    )
    few = min(6, -(-len(ranked) // 2))
    for title, group in (("Worst", ranked[:few]), ("Best", ranked[::-1][:few])):
        page.text(f"{title}: {', '.join(f'{quality:.2f}' for quality, _, _ in group)}")
        pictures = [_pair(val_set, index, result) for _, index, result in group]
        page.picture(image_grid(pictures, 2), f"{title} images", photograph=True)
    page.section("Attention")
    shown = 0
    for _, index, result in ranked[::-1]:
        if float(result["scores"].max()) < 0.5 or shown == 2:
            continue
        image = _image(val_set, index, device)
        picture = as_picture(image)
        if not shown:
            page.text("What encoder cells at four points attend to:")
            page.picture(plot_encoder_attention(model, image, picture), "encoder attention")
            page.text("Detections, and the cross-attention of their queries, layer by layer:")
        drawn = plot_decoder_attention(
            model, image, picture, val_set.class_names, layer="all", most=4
        )
        page.picture(drawn, "decoder attention")
        shown += 1
    if not shown:
        page.text("No detection reaches a score of 0.5 in these images.")


def _image(val_set: DetectionDataset, index: int, device: torch.device) -> Tensor:
    ((images, _, _),) = batches(torch.utils.data.Subset(val_set, [index]), device, 1)
    return images[0]


def _pair(val_set: DetectionDataset, index: int, result: dict[str, Tensor]) -> Any:
    ((images, _, targets),) = batches(
        torch.utils.data.Subset(val_set, [index]), torch.device("cpu"), 1
    )
    return truth_and_detections(
        as_picture(images[0]),
        targets[0]["labels"],
        targets[0]["boxes"],
        result,
        val_set.class_names,
    )


def _speed(
    page: Page,
    rows: list[dict[str, Any]],
    vals: list[dict[str, Any]],
    model: nn.Module,
    checkpoint: dict[str, Any],
) -> None:
    page.section("Speed")
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    table = [
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("optimizer steps", f"{checkpoint['step']:,}"),
        ("images trained on", f"{checkpoint['images_seen']:,}"),
        ("seconds of training", f"{checkpoint['seconds']:,.0f}"),
    ]
    if speeds:
        table.append(("images per second, median", f"{median(speeds):,.1f}"))
    if vals:
        table.append(("seconds of the last evaluation", f"{vals[-1]['seconds']:,.1f}"))
    page.tables((("", ""), table))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
