"""The losses of validation images: those of all images in one batch, of the weights evaluated."""

import contextlib
import dataclasses
import math

import pytest
import torch
from devices import NoWait, needs_cuda
from test_losses import K, on, predictions, some_targets
from torch import nn
from training_cases import small_trainer, train_rows

from detr_fast import FastMatcher, reference
from detr_fast.data import DetectionDataset, Shapes, collate, fixed_eval, to_device
from detr_fast.evaluation import evaluate
from detr_fast.losses import SetCriterion
from detr_fast.models import detr_tiny
from detr_fast.training.evaluation_losses import EvaluationLosses
from detr_fast.training.logs import ProgressBar

pytest.importorskip("pycocotools")


class SomeEmpty(Shapes):
    """Shapes of which every third image, the first included, has no object; or no image has one."""

    def __init__(self, length: int, every: int = 3) -> None:
        super().__init__(length, image_size=48, seed=2, transforms=fixed_eval(None))
        self.every = every

    def _load(self, index: int):
        pixels, record = super()._load(index)
        if index % self.every == 0:
            record = dataclasses.replace(record, boxes=record.boxes[:0], labels=record.labels[:0])
        return pixels, record


@torch.no_grad()
def in_one_batch(model: nn.Module, dataset: DetectionDataset, *options) -> dict[str, float]:
    """The losses by the straightforward twin."""
    images = [dataset[index] for index in range(len(dataset))]
    images, mask, targets = to_device(collate(images), torch.device("cpu"))
    losses = reference.set_criterion(model.eval()(images, mask), targets, *options)
    return {name: float(value) for name, value in losses.items()}


@pytest.mark.parametrize("aux_loss", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_whatever_the_batch_size(batch_size, aux_loss):
    """Though images without objects, alone in a batch, and fewer in the last one count as any."""
    torch.manual_seed(0)
    model, data = detr_tiny(num_classes=3, num_queries=5), SomeEmpty(7)
    model.aux_loss = aux_loss
    criterion = SetCriterion(
        3, FastMatcher(2, 1, 1), eos_coef=0.4, weight_class=3, weight_bbox=0.5, weight_giou=7
    )
    losses = EvaluationLosses(criterion)
    evaluate(model, data, "cpu", batch_size, observe=losses.add)
    matcher = reference.HungarianMatcher(2, 1, 1)
    expected = in_one_batch(model, data, 3, 0.4, (3, 0.5, 7), matcher)
    assert losses.finish() == pytest.approx(expected, rel=1e-5)
    assert ("loss_giou_1" in expected) == aux_loss and expected["loss_bbox"] > 0


def test_without_any_object():
    model, data = detr_tiny(num_classes=3, num_queries=5), SomeEmpty(4, every=1)
    for eos_coef in (0.1, 0):
        losses = EvaluationLosses(SetCriterion(3, eos_coef=eos_coef))
        evaluate(model, data, "cpu", 3, observe=losses.add)
        found = losses.finish()
        assert found["loss_bbox"] == found["loss_giou"] == 0
        assert found["loss_ce"] > 0 if eos_coef else found["loss"] == 0
        assert math.isfinite(found["loss"])


def test_a_run_logs_them_of_the_averaged_weights(tmp_path):
    trainer = small_trainer(tmp_path, epochs=2, ema=0.9, eos_coef=0.3, weight_giou=1.0, amp="none")
    trainer.run()
    row = train_rows(tmp_path)[-1]
    trained = [name for name in train_rows(tmp_path)[0] if name.startswith("loss")]
    assert row["kind"] == "val" and trained == [name for name in row if name.startswith("loss")]
    weights = trainer.criterion.weights.values()
    expected = in_one_batch(trainer.eval_model, trainer.val_set, 3, 0.3, tuple(weights))
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    other = in_one_batch(trainer.model, trainer.val_set, 3, 0.3, tuple(weights))
    assert other["loss"] != pytest.approx(expected["loss"], rel=1e-3)


def test_training_goes_on_as_without(tmp_path):
    """An evaluation draws no random number, and leaves criterion and gradients as they are."""
    trainer = small_trainer(tmp_path)
    before = torch.get_rng_state(), repr(trainer.criterion)
    trainer._evaluate(0, None, ProgressBar(1, 0, quiet=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(trainer.criterion) == before[1]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_predictions_that_are_not_finite_name_the_image(tmp_path):
    """And not a place in a batch, where the losses are computed first."""
    trainer = small_trainer(tmp_path, epochs=1)
    nn.init.constant_(trainer.eval_model.class_embed.bias, math.nan)
    said = "evaluation of epoch 1: image 0: .* scores is not finite: .* last.pt has these weights"
    with pytest.raises(ValueError, match=said):
        trainer._evaluate(1, None, ProgressBar(1, 0, quiet=True))


@needs_cuda
def test_adding_on_a_gpu_does_not_wait():
    batches = [
        (predictions(6, len(counts), 7, seed), some_targets(counts, seed))
        for seed, counts in enumerate([[3, 1], [0, 0], [9]])
    ]
    ours, expected = (EvaluationLosses(SetCriterion(K).to(d)) for d in ("cuda", "cpu"))
    for number, (outputs, targets) in enumerate(batches):
        expected.add(outputs, targets)
        given = on("cuda", outputs), on("cuda", targets)
        # In the first one kernels are loaded, and memory is reserved.
        with NoWait() if number else contextlib.nullcontext():
            ours.add(*given)
    assert ours.finish() == pytest.approx(expected.finish(), rel=1e-5)
