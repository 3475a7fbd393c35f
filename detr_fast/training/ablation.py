"""Ablations: repeat the same training with one thing changed each time (paper, section 4.2)."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detr_fast.data import DetectionDataset
from detr_fast.data.loader import make_eval_loader
from detr_fast.evaluation import coco_metrics, detect
from detr_fast.files import written_whole
from detr_fast.training.config import TrainConfig
from detr_fast.training.engine import Trainer
from detr_fast.training.lock import LOCK, FolderLock
from detr_fast.training.logs import read_metrics, read_rows

BASELINE = "baseline"
RESULTS, CONFIG = "results.jsonl", "config.json"
RUN = "training"  # the run in progress, a subfolder of the ablation's folder


@dataclass(frozen=True)
class Variant:
    """The baseline with some options changed."""

    name: str
    group: str
    options: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant(BASELINE, BASELINE),
    *(
        Variant(f"queries-{n}", "number of queries", {"num_queries": n})
        for n in (1, 5, 10, 20, 100)
    ),
    Variant("no-self-attention", "decoder", {"decoder_self_attention": False}),
    Variant("no-aux-loss", "decoder", {"aux_loss": False}),
    Variant("learned-queries", "decoder", {"query_mode": "learned"}),
    Variant("anchor-queries", "decoder", {"query_mode": "anchor"}),
    Variant("no-l1", "matching and loss", {"cost_bbox": 0.0, "weight_bbox": 0.0}),
    Variant("no-l1-cost", "matching and loss", {"cost_bbox": 0.0}),
    Variant("no-l1-loss", "matching and loss", {"weight_bbox": 0.0}),
    Variant("no-giou", "matching and loss", {"cost_giou": 0.0, "weight_giou": 0.0}),
    Variant("no-giou-cost", "matching and loss", {"cost_giou": 0.0}),
    Variant("no-giou-loss", "matching and loss", {"weight_giou": 0.0}),
    # The class loss itself must stay: nothing else teaches which class a box has.
    Variant("no-class-cost", "matching and loss", {"cost_class": 0.0}),
    Variant("position-at-input", "position encoding", {"position_at": "input"}),
    Variant("no-position", "position encoding", {"position_encoding": "none"}),
    *(
        Variant(f"eos-{c:g}", 'weight of "no object"', {"eos_coef": c})
        for c in (0.02, 0.1, 0.4, 1.0)
    ),
)


def changed_variants(config: TrainConfig, names: Sequence[str] | None = None) -> list[Variant]:
    """Return the baseline and every variant, or every one in ``names``, that differs from it.

    Raises:
        ValueError: an unknown name.
    """
    known = {variant.name: variant for variant in VARIANTS}
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown variant {name!r}, expected one of {', '.join(known)}")
    effective = config.to_dict() | {"query_mode": query_mode(config)}
    chosen = [known[name] for name in known if not names or name in (BASELINE, *names)]
    return [
        variant
        for variant in chosen
        if variant.name == BASELINE
        or any(effective[name] != value for name, value in variant.options.items())
    ]


def query_mode(config: TrainConfig) -> str:
    """Return the kind of queries of a configuration's model, ``"anchor"`` or ``"learned"``."""
    return config.query_mode or ("anchor" if config.model == "tiny" else "learned")


def _is_of(then: str, now: str) -> bool:
    """Return whether two ablations' files, as text, describe the same baseline.

    Options missing from ``then`` were added to the code later: they count as their defaults.
    """
    try:
        baseline = {**TrainConfig().to_dict(), **json.loads(then)["ablation of"]}
    except (ValueError, KeyError, TypeError):
        return False
    return baseline == json.loads(now)["ablation of"]


class Ablation:
    """Trainings of all variants with all seeds, with a row for each in ``results.jsonl``.

    What has a row already is not trained again, so an interrupted ablation resumes.

    Args:
        config: the baseline; every variant has the same budget, and its data in the same order.
        open_data: opens a configuration's training and validation data.
        folder: for this ablation's results alone; checkpoints are deleted once evaluated.

    Raises:
        ValueError: the folder holds something else, or results of another baseline.
    """

    def __init__(
        self,
        config: TrainConfig,
        open_data: Callable[[TrainConfig], tuple[DetectionDataset, DetectionDataset]],
        folder: Path,
        device: torch.device,
    ) -> None:
        self.config = config
        self.open_data = open_data
        self.folder = folder
        self.device = device
        baseline = {**config.to_dict(), "seed": None, "workers": None}
        self._config_text = json.dumps({"ablation of": baseline}, indent=1) + "\n"
        path = folder / CONFIG
        if path.exists():
            if not _is_of(path.read_text(), self._config_text):
                raise ValueError(f"{path} describes another baseline: choose another folder")
        elif folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no ablation: choose another folder")

    def rows(self) -> list[dict[str, Any]]:
        """Return the results so far."""
        return read_results(self.folder)

    def run(self, variants: Sequence[Variant], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Train each missing variant and seed, one seed after the other, and yield its row.

        Raises:
            ValueError: another process is training in this folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FolderLock(self.folder):
                yield from self._run(variants, seeds)
        finally:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # if it is empty, no training began: leave nothing behind

    def _run(self, variants: Sequence[Variant], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
        rows = self.rows()
        done = {(row["variant"], row["seed"]) for row in rows}
        if rows:  # drop a line that was cut off: the next one would be appended to it
            text = "".join(json.dumps(row) + "\n" for row in rows)
            with written_whole(self.folder / RESULTS) as temporary:
                temporary.write_text(text)
        for seed in seeds:
            for variant in variants:
                if (variant.name, seed) in done:
                    continue
                row = self._train(variant, seed)
                with (self.folder / RESULTS).open("a") as file:
                    file.write(json.dumps(row) + "\n")
                yield row

    def _train(self, variant: Variant, seed: int) -> dict[str, Any]:
        config = replace(self.config, **variant.options, seed=seed)
        train_set, val_set = self.open_data(config)
        (self.folder / CONFIG).write_text(self._config_text)
        run = self.folder / RUN
        shutil.rmtree(run, ignore_errors=True)  # left by an interrupted training
        trainer = Trainer(config, train_set, val_set, run, self.device, quiet=True)
        row = trainer.run()
        loader = make_eval_loader(val_set, config.batch_size, trainer.workers)
        detections = detect(trainer.eval_model, loader, self.device, trainer.amp)
        distinct = {image: without_duplicates(result) for image, result in detections.items()}
        suppressed, _ = coco_metrics(val_set.coco, distinct, val_set.category_ids)
        curve = [
            {"epoch": r["epoch"], "AP": r["AP"], "AP50": r["AP50"]}
            for r in read_metrics(run / "metrics.jsonl")
            if r["kind"] == "val"
        ]
        shutil.rmtree(run)
        return {
            "variant": variant.name,
            "group": variant.group,
            "options": variant.options,
            "seed": seed,
            "steps": trainer.step,
            "images": trainer.images_seen,
            **{name: row[name] for name in ("AP", "AP50", "AP75", "AR_100")},
            "AP_nms": suppressed["AP"],
            "duplicates": duplicates_per_image(detections),
            "train_seconds": round(trainer.seconds, 1),
            "curve": curve,
        }


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of ``results.jsonl``; a line cut off by a crash is left out."""
    return list(read_rows(folder / RESULTS))


def without_duplicates(
    found: dict[str, Tensor],  # scores, labels, boxes xyxy of one image
    iou: float = 0.5,
) -> dict[str, Tensor]:
    """Return what non-maximum suppression per class keeps; DETR should need none."""
    keep = batched_nms(found["boxes"], found["scores"], found["labels"], iou)
    return {name: value[keep] for name, value in found.items()}


def duplicates_per_image(
    detections: dict[int, dict[str, Tensor]], score: float = 0.5, iou: float = 0.5
) -> float:
    """Return how many detections per image, on average, repeat a higher-scored one of their class.

    Args:
        detections: image id -> scores, labels, boxes xyxy.
        score: detections below it do not count.
        iou: two boxes that overlap by more than this are one object.
    """
    count = 0
    for result in detections.values():
        sure = {name: value[result["scores"] >= score] for name, value in result.items()}
        count += len(sure["scores"]) - len(without_duplicates(sure, iou)["scores"])
    return count / max(1, len(detections))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; the latter is 0 for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
