"""COCO evaluation with pycocotools, in one process or several."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from detr_fast import processes
from detr_fast.data import Batch, DetectionDataset, Prefetcher
from detr_fast.data.loader import make_eval_loader
from detr_fast.faults import PredictionError
from detr_fast.files import written_whole
from detr_fast.garbage import uncollected
from detr_fast.models import PostProcess
from detr_fast.precision import autocast

if TYPE_CHECKING:
    from pycocotools.coco import COCO

Observer = Callable[[dict[str, Any], list[dict[str, Any]]], object]  # called with outputs, targets
METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
_DESCRIPTIONS = (
    ("Average Precision (AP)", "0.50:0.95", "all", 100),
    ("Average Precision (AP)", "0.50", "all", 100),
    ("Average Precision (AP)", "0.75", "all", 100),
    ("Average Precision (AP)", "0.50:0.95", "small", 100),
    ("Average Precision (AP)", "0.50:0.95", "medium", 100),
    ("Average Precision (AP)", "0.50:0.95", "large", 100),
    ("Average Recall    (AR)", "0.50:0.95", "all", 1),
    ("Average Recall    (AR)", "0.50:0.95", "all", 10),
    ("Average Recall    (AR)", "0.50:0.95", "all", 100),
    ("Average Recall    (AR)", "0.50:0.95", "small", 100),
    ("Average Recall    (AR)", "0.50:0.95", "medium", 100),
    ("Average Recall    (AR)", "0.50:0.95", "large", 100),
)


def evaluate(
    model: nn.Module,
    dataset: DetectionDataset,
    device: torch.device | str,
    batch_size: int,
    workers: int = 0,
    amp: torch.dtype | None = None,
    observe: Observer | None = None,
    results: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Return COCO figures of a model, and ``per_class``: class name -> AP, on every process.

    Each process runs its share of the batches; the figures equal those of a single process.
    ``observe``: see ``detect``. ``results``: a file for all detections in COCO's format of results,
    which its tools read: ``image_id``, ``category_id``, ``bbox`` and ``score``. ``progress``: show
    a bar on a terminal, of this process's batches.

    Raises:
        ImportError: pycocotools is not installed; raised before the model runs.
    """
    import_cocoeval()
    device = torch.device(device)
    loader = make_eval_loader(
        dataset,
        batch_size,
        workers,
        processes.rank(),
        processes.world_size(),
        pin_memory=device.type == "cuda",
    )
    row: dict[str, Any] = {}
    with _shown(loader) if progress else contextlib.nullcontext(loader) as batches:
        parts = processes.gather(detect(model, batches, device, amp, observe))
        if processes.rank() == 0:
            detections = merge_detections(parts, len(dataset))
            figures, per_category = coco_metrics(dataset.coco, detections, dataset.category_ids)
            names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
            per_class = {names[c]: ap for c, ap in per_category.items() if c in names}
            row = {**figures, "per_class": per_class}
            if results is not None:
                rows = _coco_results(detections, dataset.category_ids)
                with written_whole(results) as temporary:
                    temporary.write_text(json.dumps(rows))
    return processes.broadcast(row)


@contextlib.contextmanager
def _shown(loader: DataLoader) -> Iterator[Iterator[Batch]]:
    """Give the loader's batches, and show how many are done, until the context ends."""
    hidden = True if sys.stderr is None else None  # None: where it is not a terminal
    options = {"unit": "batch", "leave": False, "disable": hidden}
    with tqdm(desc="evaluation", total=len(loader), **options) as bar:

        def counted() -> Iterator[Batch]:
            for batch in loader:
                yield batch
                bar.update()

        yield counted()


@torch.no_grad()
def detect(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    amp: torch.dtype | None = None,
    observe: Observer | None = None,
) -> dict[int, dict[str, Tensor]]:
    """Detect in every image of a loader; return image id -> scores, labels, boxes xyxy.

    Boxes are in the pixels of the original images. Leaves the model in evaluation mode.
    ``observe``, if given, is called with all that the model returned for a batch, where it is, and
    the targets.
    """
    model.eval()
    detections: dict[int, dict[str, Tensor]] = {}
    for images, mask, targets in Prefetcher(device).batches(loader):
        original = torch.stack([target["orig_size"] for target in targets])
        outputs = _outputs(model, images, mask, amp)
        if observe is not None:
            observe(outputs, targets)  # queued before the copies make the host wait
        results = PostProcess()(_on_cpu(outputs), original)
        for target, result in zip(targets, results, strict=True):
            detections[int(target["image_id"])] = result
    return detections


@torch.no_grad()
def detect_batch(
    model: nn.Module,
    images: Tensor,  # [B, 3, H, W], where the model is
    mask: Tensor | None,  # bool [B, H, W], True = padding
    sizes: Tensor,  # [B, 2] (height, width) in pixels that the boxes are scaled to; on the CPU
    amp: torch.dtype | None = None,
    score_threshold: float = 0.0,
) -> list[dict[str, Tensor]]:
    """Return a batch's detections, per image ``scores``, ``labels``, ``boxes`` xyxy; on the CPU.

    Boxes are relative to each image without its padding, as is the position encoding.
    """
    return PostProcess(score_threshold)(_on_cpu(_outputs(model, images, mask, amp)), sizes)


def _outputs(
    model: nn.Module, images: Tensor, mask: Tensor | None, amp: torch.dtype | None
) -> dict[str, Any]:
    with autocast(images.device, amp):
        return model(images, mask)


def _on_cpu(outputs: dict[str, Any]) -> dict[str, Tensor]:
    """Return a batch's logits and boxes: two copies, instead of several for each image."""
    return {name: outputs[name].cpu() for name in ("pred_logits", "pred_boxes")}


def merge_detections(
    parts: Iterable[dict[int, dict[str, Tensor]]], images: int
) -> dict[int, dict[str, Tensor]]:
    """Merge the detections of all processes, in the order of image ids.

    Args:
        parts: each process's detections, as ``detect`` returns them.
        images: how many images there are.

    Raises:
        RuntimeError: an image was evaluated by two processes, or by none: the figures would not
            describe the data.
    """
    merged: dict[int, dict[str, Tensor]] = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise RuntimeError(f"image {min(twice)} was evaluated by two processes")
        merged |= part
    if len(merged) != images:
        raise RuntimeError(f"{len(merged)} of {images} images were evaluated")
    return dict(sorted(merged.items()))


def coco_metrics(
    truth: "COCO", detections: dict[int, dict[str, Tensor]], category_ids: list[int]
) -> tuple[dict[str, float], dict[int, float]]:
    """Compute COCOeval's figures.

    Args:
        truth: the annotations, crowd regions included.
        detections: as ``detect`` returns them, for the images to be evaluated.
        category_ids: the category id of each label.

    Returns:
        The twelve figures by the names of ``METRICS``, and AP per category id. A figure without
        any object to measure it on is -1, as in COCOeval.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: a label without a category id, as of a model that was trained on other classes,
            or an image that ``truth`` does not have.
        PredictionError: a score or box that is not finite.
    """
    cocoeval = import_cocoeval()
    for image_id, result in detections.items():
        _check_detections(image_id, result, truth, len(category_ids))
    rows = [
        np.column_stack(
            [
                np.full(len(result["scores"]), image_id, dtype=np.float64),
                result["boxes"][:, :2].double().numpy(),
                (result["boxes"][:, 2:] - result["boxes"][:, :2]).double().numpy(),
                result["scores"].double().numpy(),
                np.asarray(category_ids, dtype=np.float64)[result["labels"].numpy()],
            ]
        )
        for image_id, result in detections.items()
    ]
    results = np.concatenate(rows) if rows else np.empty((0, 7))
    # pycocotools prints each step.
    with contextlib.redirect_stdout(io.StringIO()), uncollected():
        evaluation = cocoeval.COCOeval(truth, _load_results(truth, results), iouType="bbox")
        evaluation.params.imgIds = sorted(detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: float(x) for name, x in zip(METRICS, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"]  # [IoU, recall, category, area, detections]
    per_category = {}
    for index, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, index, 0, -1]
        values = values[values > -1]
        per_category[int(category)] = float(values.mean()) if values.size else -1.0
    return figures, per_category


def _coco_results(
    detections: dict[int, dict[str, Tensor]], category_ids: list[int]
) -> list[dict[str, Any]]:
    """Return detections as COCO's format of results has them, with boxes [x, y, width, height]."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],  # not rounded: AP would be another
            "score": score,
        }
        for image_id, found in detections.items()
        for score, label, (x1, y1, x2, y2) in zip(
            *(found[name].tolist() for name in ("scores", "labels", "boxes")), strict=True
        )
    ]


def _check_detections(
    image_id: int, result: dict[str, Tensor], truth: "COCO", classes: int
) -> None:
    if image_id not in truth.imgs:
        raise ValueError(f"image {image_id!r} is not in the annotations")
    for label in result["labels"][(result["labels"] < 0) | (result["labels"] >= classes)].tolist():
        raise ValueError(
            f"image {image_id}: a detection has the label {label}, but the data has {classes} "
            f"classes (0..{classes - 1})"
        )
    check_finite(result, f"image {image_id}: ")  # COCOeval would count a box of NaN as a match


def check_finite(result: dict[str, Tensor], place: str = "") -> None:
    """Raise PredictionError, its message beginning with ``place``, for detections of NaN or inf."""
    for name in ("scores", "boxes"):
        if not result[name].isfinite().all():
            raise PredictionError(f"{place}one of the detections' {name} is not finite")


def import_cocoeval() -> ModuleType:
    """Import ``pycocotools.cocoeval`` at first use: only the figures need it.

    Raises:
        ImportError: pycocotools is not installed.
    """
    try:
        from pycocotools import cocoeval
    except ImportError as error:
        raise ImportError(
            f"COCO figures need the package pycocotools (pip install pycocotools): {error}"
        ) from error
    return cocoeval


def _load_results(truth: "COCO", results: np.ndarray) -> "COCO":
    if len(results):
        return truth.loadRes(results)
    empty = type(truth)()  # loadRes refuses an empty list
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def format_metrics(
    figures: dict[str, float], per_class: dict[str, float], boxes_per_class: dict[str, int]
) -> str:
    """Format the twelve figures as COCOeval prints them, and a table of AP per class."""
    lines = [
        f" {title} @[ IoU={iou:<9} | area={area:>6} | maxDets={most:>3} ] = {figures[name]:.3f}"
        for name, (title, iou, area, most) in zip(METRICS, _DESCRIPTIONS, strict=True)
    ]
    width = max((len(name) for name in per_class), default=5)
    lines.append(f"\n {'class':<{width}}  boxes     AP")
    for name, value in per_class.items():
        boxes = boxes_per_class.get(name, 0)
        lines.append(f" {name:<{width}} {boxes:6d} {format_figure(value):>6}")
    return "\n".join(lines)


def format_figure(value: float) -> str:
    """Return a figure with three digits; "-" for one without any object to measure it on."""
    return f"{value:.3f}" if value >= 0 else "-"
