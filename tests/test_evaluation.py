"""COCO evaluation: figures, classes, crowds, and images without anything found."""

import io
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from detr_fast.data import CocoDetection, Shapes, collate, fixed_eval, to_device
from detr_fast.data.loader import make_eval_loader, make_loader
from detr_fast.evaluation import (
    METRICS,
    coco_metrics,
    detect,
    detect_batch,
    evaluate,
    format_metrics,
)
from detr_fast.models import detr_tiny
from detr_fast.precision import amp_dtype, autocast

pytest.importorskip("pycocotools")


def truth_as_detections(dataset: Shapes) -> dict[int, dict[str, Tensor]]:
    found = {}
    for index in range(len(dataset)):
        record = dataset.record(index)
        found[record.image_id] = {
            "scores": torch.ones(len(record.labels)),
            "labels": torch.tensor(record.labels),
            "boxes": torch.tensor(record.boxes, dtype=torch.float32),
        }
    return found


@pytest.fixture
def shapes() -> Shapes:
    return Shapes(10, image_size=96, seed=0, transforms=fixed_eval(None))


def test_perfect_detections(shapes):
    figures, per_category = coco_metrics(
        shapes.coco, truth_as_detections(shapes), shapes.category_ids
    )
    assert tuple(figures) == METRICS
    assert figures["AP"] == figures["AP50"] == figures["AR_100"] == pytest.approx(1.0)
    assert set(per_category) == set(shapes.category_ids)
    assert all(value == pytest.approx(1.0) for value in per_category.values())


def test_one_class_mistaken_for_another(shapes):
    found = truth_as_detections(shapes)
    for detections in found.values():
        detections["labels"][detections["labels"] == 1] = 2
    figures, per_category = coco_metrics(shapes.coco, found, shapes.category_ids)
    assert per_category[shapes.category_ids[0]] == pytest.approx(1.0)
    assert per_category[shapes.category_ids[1]] == 0
    assert 0 < per_category[shapes.category_ids[2]] < 1
    assert figures["AP"] == pytest.approx(sum(per_category.values()) / 3)


def test_shifted_boxes_lose_the_strict_thresholds(shapes):
    found = truth_as_detections(shapes)
    for detections in found.values():
        size = detections["boxes"][:, 2] - detections["boxes"][:, 0]
        detections["boxes"][:, 0::2] += 0.25 * size[:, None]  # IoU 0.75 / 1.25 = 0.6
    figures, _ = coco_metrics(shapes.coco, found, shapes.category_ids)
    assert figures["AP50"] == pytest.approx(1.0) and figures["AP75"] == 0
    assert figures["AP"] == pytest.approx(0.2, abs=0.11)  # 0.50 and 0.55, and 0.60 by rounding


def test_nothing_found(shapes):
    empty = {"scores": torch.zeros(0), "labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4)}
    found = {shapes.record(i).image_id: empty for i in range(len(shapes))}
    figures, _ = coco_metrics(shapes.coco, found, shapes.category_ids)
    assert figures["AP"] == 0


def test_a_label_of_other_classes_is_an_error(shapes):
    strange = {"scores": torch.ones(1), "labels": torch.tensor([3]), "boxes": torch.ones(1, 4)}
    message = r"image 2: .* label 3, but the data has 3 classes \(0\.\.2"
    with pytest.raises(ValueError, match=message):
        coco_metrics(shapes.coco, {2: strange}, shapes.category_ids)


@pytest.mark.parametrize(
    ("image_id", "change", "message"),
    [
        (2, {"labels": torch.tensor([-1])}, "image 2: .* label -1"),
        (2, {"boxes": torch.full((1, 4), torch.nan)}, "image 2: .* boxes is not finite"),
        (2, {"scores": torch.tensor([torch.inf])}, "image 2: .* scores is not finite"),
        ("2", {}, "image '2' is not in the annotations"),
    ],
)
def test_what_has_no_figures_is_an_error(shapes, image_id, change, message):
    """COCOeval counts a box of NaN as a match of everything."""
    found = {"scores": torch.ones(1), "labels": torch.tensor([0]), "boxes": torch.ones(1, 4)}
    with pytest.raises(ValueError, match=message):
        coco_metrics(shapes.coco, {image_id: found | change}, shapes.category_ids)


def test_sparse_category_ids(coco_files):
    dataset = CocoDetection(*coco_files)
    found = truth_as_detections(dataset)
    figures, per_category = coco_metrics(dataset.coco, found, dataset.category_ids)
    assert figures["AP50"] == pytest.approx(1.0)
    assert set(per_category) == {3, 17, 90}


class Oracle(nn.Module):
    """A model that knows the answers: it finds each image by its pixels."""

    def __init__(self, dataset: Shapes) -> None:
        super().__init__()
        self.known = [dataset[i] for i in range(len(dataset))]

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        logits, boxes = torch.zeros(len(images), 8, 4), torch.full((len(images), 8, 4), 0.5)
        logits[..., 3] = 20
        for b, image in enumerate(images):
            target = next(
                target
                for known, target in self.known
                if torch.equal(known, image[:, : known.shape[1], : known.shape[2]])
            )
            count = len(target["labels"])
            logits[b, torch.arange(count), target["labels"]] = 40
            boxes[b, :count] = target["boxes"]
        return {"pred_logits": logits, "pred_boxes": boxes}


class TestDetect:
    def test_boxes_come_back_in_pixels_of_the_original_images(self):
        dataset = Shapes(6, image_size=96, seed=3, transforms=fixed_eval((64, 48)))
        row = evaluate(Oracle(dataset), dataset, torch.device("cpu"), batch_size=4)
        assert row["AP"] == pytest.approx(1.0)
        assert set(row["per_class"]) == {"circle", "square", "triangle"}

    def test_padding_does_not_shift_boxes(self):
        small = Shapes(3, image_size=64, seed=3, transforms=fixed_eval((64, 40)))
        large = Shapes(3, image_size=64, seed=4, transforms=fixed_eval((48, 64)))
        mixed = torch.utils.data.ConcatDataset([small, large])
        oracle = Oracle(small)
        oracle.known += Oracle(large).known
        loader = make_loader(mixed, 0, batch_size=6)
        ((images, mask, _),) = loader
        assert mask.any() and images.shape[-2:] == (64, 64)
        # Both sets number their images alike: look at the large ones, which come last.
        found = detect(oracle, loader, torch.device("cpu"))
        figures, _ = coco_metrics(large.coco, found, large.category_ids)
        assert figures["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_how_the_model_is_run(shapes, amp):
    """Without dropout and without a graph, in the precision asked for."""
    model, seen, cpu = detr_tiny(num_classes=3, num_queries=5), [], torch.device("cpu")

    def watch(module, _, outputs):
        seen.append((module.training, torch.is_grad_enabled(), outputs["pred_logits"].dtype))

    model.register_forward_hook(watch)
    evaluate(model, shapes, "cpu", batch_size=8, amp=amp)
    images, mask, _ = to_device(collate([shapes[0]]), cpu)
    detect_batch(model, images, mask, torch.ones(1, 2), amp)
    assert seen == [(False, False, amp or torch.float32)] * 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_progress_on_a_terminal(monkeypatch, progress, stream):
    shapes = Shapes(6, image_size=64, seed=3, transforms=fixed_eval((64, 64)))
    monkeypatch.setattr("sys.stderr", stream())
    evaluate(Oracle(shapes), shapes, "cpu", batch_size=4, progress=progress)
    shown = sys.stderr.getvalue()
    assert ("evaluation:" in shown and "/2 [" in shown) == (progress and stream is Terminal)
    assert shown == "" or shown.endswith("\r")  # the bar is gone


def test_no_progress_without_standard_error(monkeypatch):
    shapes = Shapes(3, image_size=64, seed=3, transforms=fixed_eval((64, 64)))
    monkeypatch.setattr("sys.stderr", None)
    assert evaluate(Oracle(shapes), shapes, "cpu", batch_size=4, progress=True)["AP"] > 0.9


def test_a_broken_model_is_an_error_and_not_an_ap_of_0(shapes):
    model = detr_tiny(num_classes=3, num_queries=5)
    torch.nn.init.constant_(model.class_embed.weight, torch.nan)
    with pytest.raises(ValueError, match=r"image \d+: one of the detections' scores is not finite"):
        evaluate(model, shapes, "cpu", batch_size=8)


def test_only_detections_above_the_threshold(shapes):
    images, mask, targets = to_device(collate([shapes[0]]), torch.device("cpu"))
    (found,) = detect_batch(Oracle(shapes), images, mask, torch.ones(1, 2), score_threshold=0.5)
    assert len(found["scores"]) == len(targets[0]["labels"])


def test_only_images_with_an_entry_are_evaluated(shapes):
    found = truth_as_detections(shapes)
    del found[3]
    figures, _ = coco_metrics(shapes.coco, found, shapes.category_ids)
    assert figures["AP"] == pytest.approx(1.0)


def test_what_observes_gets_outputs_and_targets(shapes):
    """By position, as its type says."""
    seen = []
    model = detr_tiny(num_classes=3, num_queries=5)
    loader = make_eval_loader(shapes, batch_size=4, workers=0)
    detect(model, loader, torch.device("cpu"), observe=lambda *given: seen.append(given))
    assert [len(targets) for _, targets in seen] == [len(batch) for batch in loader.batch_sampler]
    for outputs, targets in seen:
        assert outputs["pred_logits"].shape == (len(targets), 5, 4)


def test_an_unknown_precision_is_an_error():
    with pytest.raises(ValueError, match="amp is 'fp16', expected one of auto, none, bf16"):
        amp_dtype("fp16", torch.device("cpu"))


@pytest.mark.parametrize("has_tiles", [True, False])
def test_amp_dtype(monkeypatch, has_tiles):
    cpu = torch.device("cpu")
    assert amp_dtype("none", cpu) is None and amp_dtype("bf16", cpu) is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles, raising=False)
    assert amp_dtype("auto", cpu) is (torch.bfloat16 if has_tiles else None)
    with autocast(cpu, amp_dtype("bf16", cpu)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with autocast(cpu, None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_table():
    figures = {name: i / 100 for i, name in enumerate(METRICS)}
    text = format_metrics(figures, {"cat": 0.5, "unicorn": -1.0}, {"cat": 7})
    lines = text.splitlines()
    assert lines[0] == (
        " Average Precision (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.000"
    )
    assert len([line for line in lines if "@[" in line]) == 12
    assert " cat          7  0.500" in lines and " unicorn      0      -" in lines


def test_evaluation_stands_below_training(tmp_path):
    """Training evaluates; if evaluation took anything from there, it would depend on the order."""
    code = "import sys, detr_fast.evaluation; print([m for m in sys.modules if '.training' in m])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr


def test_without_pycocotools_the_package_is_named_before_anything_is_detected(shapes, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, "pycocotools.cocoeval", raising=False)
    with pytest.raises(ImportError, match=r"pip install pycocotools"):
        evaluate(None, shapes, torch.device("cpu"), 2)
    with pytest.raises(ImportError, match=r"COCO figures need the package pycocotools"):
        coco_metrics(None, {}, [])
