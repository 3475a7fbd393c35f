"""The training loop: steps, averaged weights, what is logged, and runs that fail."""

import concurrent.futures
import dataclasses
import json
import math
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_cases import small_trainer, train_rows

from detr_fast import _C, faults
from detr_fast.data import Batch, Shapes, fixed_eval
from detr_fast.models.weights import CheckpointError
from detr_fast.training import TrainConfig, Trainer, load_checkpoint
from detr_fast.training.averaging import WeightAverage
from detr_fast.training.interval import LogInterval
from detr_fast.training.logs import read_metrics

pytest.importorskip("pycocotools")


def test_it_learns_a_few_images_by_heart(tmp_path):
    images = Shapes(8, image_size=48, seed=0, transforms=fixed_eval(None))
    config = TrainConfig.create(
        batch_size=8, epochs=60, eval_every=60, lr=1e-3, num_queries=6, workers=0, ema=0.0
    )
    trainer = Trainer(config, images, images, tmp_path, torch.device("cpu"), quiet=True)
    row = trainer.run()
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert all(0 < line["data_share"] < 1 for line in lines if line["kind"] == "train")
    losses = [row["loss"] for row in train_rows(tmp_path) if row["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]
    assert row["AP50"] > 0.5


@pytest.mark.parametrize("counts", [(1, 0, 2, 1, 9, 0, 5, 4), (0, 0, 0, 0, 0, 0, 1, 0), (0,) * 8])
def test_accumulated_batches_are_one_large_batch(tmp_path, counts):
    """Without batch norm, gradients and losses agree, however the boxes are distributed."""
    trainers = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        trainer = small_trainer(
            tmp_path / str(accumulate),
            batch_size=batch_size,
            accumulate=accumulate,
            ema=0.0,
            amp="none",
            warmup_steps=0,
        )
        for module in trainer.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        trainer.parallel.train = lambda: None
        trainers.append(trainer)
    targets = [  # at most 6 of an image find a query
        {"labels": torch.arange(m) % 3, "boxes": torch.rand(m, 4) * 0.5 + 0.1} for m in counts
    ]
    images, mask = torch.randn(8, 3, 48, 48), torch.zeros(8, 48, 48, dtype=torch.bool)
    whole = Batch(images, mask, targets)
    halves = [Batch(*(part[of] for part in whole)) for of in (slice(4), slice(4, 8))]
    losses = [
        trainer.train_on(batches)
        for trainer, batches in zip(trainers, ([whole], halves), strict=True)
    ]
    for a, b in zip(trainers[0].model.parameters(), trainers[1].model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    for name in ("grad_norm", *(name for name in losses[0] if name.startswith("loss"))):
        torch.testing.assert_close(losses[1][name], losses[0][name], atol=1e-5, rtol=1e-4)


def test_logged_losses_are_means_over_the_steps_since_the_last_row(tmp_path):
    trainer = small_trainer(tmp_path, epochs=2, log_every=4)
    step, seen = trainer.train_on, []

    def remember(*args):
        losses = step(*args)
        seen.append({name: float(value.detach()) for name, value in losses.items()})
        return losses

    trainer.train_on = remember
    trainer.run()
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [4, 6, 8, 12]  # the end of an epoch too
    begin = 0
    for row in rows:
        steps, begin = seen[begin : row["step"]], row["step"]
        for name in steps[0]:
            mean = sum(one[name] for one in steps) / len(steps)
            assert row[name] == pytest.approx(mean, rel=1e-5, abs=1e-7), name
    assert {"loss_ce_0", "loss_giou_1", "no_object_matched", "rematched_0"} <= rows[0].keys()


def test_waiting_for_the_device_counts_as_training(tmp_path, monkeypatch):
    """Where the host runs ahead of a GPU, it waits as it reads the losses."""
    means = LogInterval.means

    def late(interval, **options):
        time.sleep(0.2)
        return means(interval, **options)

    monkeypatch.setattr(LogInterval, "means", late)
    trainer = small_trainer(tmp_path, epochs=2, log_every=100)
    speeds = []
    trainer._log = lambda interval, *_: speeds.append(interval.speed(*trainer._counters())[0])
    trainer.run()
    assert trainer.seconds >= 0.4
    assert len(speeds) == 2 and max(speeds) < 24 / 0.2  # images of an epoch


@pytest.mark.parametrize(("seconds", "asked"), [(4, [1, 2, 4, 5, 6]), (3, [1, 2, 6])])
def test_several_processes_agree_at_every_slow_step_whether_to_stop(
    tmp_path, monkeypatch, seconds, asked
):
    """And where they log and after an evaluation. A scheduler waits half a minute, then kills."""
    trainer = small_trainer(tmp_path, epochs=1, log_every=3)
    monkeypatch.setattr(LogInterval, "step_seconds", lambda *_: seconds)
    two = SimpleNamespace(world_size=lambda: 2)  # for the loop alone
    for module in ("engine", "run_state"):
        monkeypatch.setattr(f"detr_fast.training.{module}.processes", two)
    steps = []

    def any_rank(*flags):
        if len(flags) == 1:  # three where they log
            steps.append(trainer.step)
        return flags

    monkeypatch.setattr("detr_fast.training.distributed.any_rank", any_rank)
    monkeypatch.setattr(trainer, "_save", lambda name: None)
    monkeypatch.setattr(trainer, "_finish_epoch", lambda *_: setattr(trainer, "evaluation_due", 0))
    monkeypatch.setattr(trainer, "_evaluate", lambda *_: {"AP": 0.0})
    trainer.run()
    assert steps == asked


def test_averaged_weights(tmp_path):
    """Weights and statistics follow with a weight that falls to 1 - decay."""
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.3)
    expected = None
    for step in range(5):
        with torch.no_grad():
            model.weight.fill_(step**2)
            model.running_mean.fill_(-step)
            model.num_batches_tracked.fill_(step)
        average.update(model)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = step**2 if step == 0 else decay * expected + (1 - decay) * step**2
    assert average.module.weight.item() == pytest.approx(expected)
    assert average.module.running_mean.item() < -3
    assert average.module.num_batches_tracked == 4
    trainer = small_trainer(tmp_path, epochs=1)
    trainer.run()
    assert trainer.eval_model is trainer.ema.module
    assert not torch.equal(trainer.model.class_embed.weight, trainer.eval_model.class_embed.weight)


def test_averaging_reads_nothing_from_the_device():
    """The meta device has no values that could be read."""
    model = nn.BatchNorm1d(1, device="meta")
    average = WeightAverage(model, 0.3)
    for _ in range(3):
        average.update(model)
    assert average.updates == 3


def test_averaging_goes_on_after_resuming(tmp_path):
    """With as many updates as there were, which decide how fast it follows."""
    small_trainer(tmp_path, epochs=1).run()
    resumed = small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=2)
    assert resumed.ema.updates == resumed.step == 6


def test_predictions_that_are_not_finite_stop_the_run_and_name_the_step(tmp_path):
    small_trainer(tmp_path, epochs=1).run()
    before = (tmp_path / "last.pt").read_bytes()
    trainer = small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=2)
    nn.init.constant_(trainer.model.class_embed.bias, math.nan)
    with pytest.raises(ValueError, match=r"step 7: .*pred_logits.* NaN, .*: the training diverged"):
        trainer.run()
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_diverged_run_stops_and_leaves_the_checkpoint(tmp_path):
    """Also on images without objects, where there is nothing to match."""
    small_trainer(tmp_path, epochs=1).run()
    before = (tmp_path / "last.pt").read_bytes()
    trainer = small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=2)
    empty = {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    step = trainer.train_on
    trainer.train_on = lambda batches: step(
        [batch._replace(targets=[empty] * len(batch.targets)) for batch in batches]
    )
    nn.init.constant_(trainer.model.class_embed.bias, math.nan)
    with pytest.raises(ValueError, match="loss is nan by step 7: the training diverged"):
        trainer.run()
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize("found_by", ["log", "checkpoint"])
def test_what_the_gpu_found_in_matching_is_raised(tmp_path, monkeypatch, found_by):
    """Also by a step that asks for nothing itself, as a CUDA graph's; nothing is saved then."""
    monkeypatch.setattr(faults, "_slots", {})
    monkeypatch.setattr("detr_fast.training.engine.check_faults", faults.raise_pending)
    slots = faults.fault_slots(torch.device("cpu"), layers=1, images=4)
    trainer = small_trainer(tmp_path, log_every=4 if found_by == "log" else 100)
    step = trainer.train_on

    def spoil_the_seventh(batches):
        if trainer.step == 6:  # image 2, query 5
            slots._numbers[2] = int(_C.Status.invalid_box) << 56 | (5 + 1) << 28
        if trainer.step == 7 and found_by == "checkpoint":
            signal.raise_signal(signal.SIGINT)
        return step(batches)

    trainer.train_on = spoil_the_seventh
    with pytest.raises(ValueError, match=r"^by step 8: outputs\['pred_boxes'\]\[2, 5\] must be"):
        trainer.run()
    assert load_checkpoint(tmp_path)["step"] == 6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["circle", "triangle", "square"], "class 1 is 'square' in .* and 'triangle' in the v"),
        (["circle", "square"], "training data has 3 classes, the validation data 2"),
    ],
)
def test_other_classes_in_validation_are_refused(tmp_path, names, message):
    train, val = (Shapes(4, image_size=48, transforms=fixed_eval(None)) for _ in range(2))
    val.class_names = names
    with pytest.raises(ValueError, match=message):
        Trainer(TrainConfig.create(), train, val, tmp_path, torch.device("cpu"), quiet=True)


def test_more_accumulation_than_batches_is_refused(tmp_path):
    with pytest.raises(ValueError, match="accumulate is 7, but an epoch has only 6 batches"):
        small_trainer(tmp_path, accumulate=7)


def test_resuming_with_other_data_is_refused(tmp_path):
    small_trainer(tmp_path, epochs=2).run()
    with pytest.raises(CheckpointError, match=r"1 processes with 6 steps.* would be 1 and 3"):
        small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=2, batch_size=8)


def test_validation_without_objects_still_writes_the_best(tmp_path):
    trainer = small_trainer(tmp_path, epochs=1)
    load = trainer.val_set._load

    def load_empty(index):
        pixels, record = load(index)
        return pixels, dataclasses.replace(record, boxes=record.boxes[:0], labels=record.labels[:0])

    trainer.val_set._load = load_empty
    trainer.run()
    assert (tmp_path / "best.pt").exists()


def test_outside_the_main_thread(tmp_path):
    trainer = small_trainer(tmp_path / "new folder", epochs=1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert "AP" in pool.submit(trainer.run).result()


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path):
    trainer = small_trainer(tmp_path, epochs=1)
    trainer.run()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 999, "epoch": 1, "loss": 2}\n{"kind": "tra')
    small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=1).run()
    assert all(row["step"] <= 6 for row in train_rows(tmp_path))


def test_images_without_any_object(tmp_path):
    trainer = small_trainer(tmp_path, epochs=1)
    empty = {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    mask = torch.zeros(2, 48, 48, dtype=torch.bool)
    losses = trainer.train_on([Batch(torch.randn(2, 3, 48, 48), mask, [empty, empty])])
    assert losses["loss"].isfinite() and losses["loss_bbox"] == 0


def test_options_reach_criterion_and_optimizer(tmp_path):
    options = {"weight_class": 1.5, "weight_bbox": 2.5, "weight_giou": 3.5, "eos_coef": 0.25}
    options |= {"cost_class": 4.5, "cost_bbox": 5.5, "cost_giou": 6.5, "box_loss": "smooth_l1"}
    options |= {"weight_decay": 0.5, "clip": 0.75, "amp": "bf16", "checkpointing": True}
    trainer = small_trainer(tmp_path, **options)
    criterion, matcher = trainer.criterion, trainer.criterion.matcher
    assert list(criterion.weights.values()) == [1.5, 2.5, 3.5]
    assert criterion.class_weights[-1] == 0.25 and criterion.box_loss == "smooth_l1"
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (4.5, 5.5, 6.5)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.5}
    assert trainer.train_step.clip == 0.75 and trainer.train_step.amp == torch.bfloat16
    assert trainer.model.transformer.decoder.checkpointing


def test_warm_up_reaches_the_schedule(tmp_path):
    trainer = small_trainer(tmp_path, epochs=5, lr=3e-3, warmup_steps=3)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_trains_in_training_mode_after_an_evaluation(tmp_path):
    """Also where the model that is trained is the one evaluated."""
    trainer = small_trainer(tmp_path, epochs=2, batch_size=12, ema=0.0)
    step, modes = trainer.train_on, []
    trainer.train_on = lambda batches: modes.append(trainer.model.training) or step(batches)
    trainer.run()
    assert modes == [True] * 4


def test_rates_fall_and_evaluations_come_when_they_should(tmp_path, monkeypatch):
    """The last one always; in the precision of the training. The rate is that of the next step."""
    given = []
    row = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "per_class": {}}
    monkeypatch.setattr(
        "detr_fast.evaluation.evaluate", lambda *args, **_: given.append(args) or dict(row)
    )
    options = {"lr": 1e-3, "lr_drop": 0.5, "eval_every": 4, "amp": "bf16"}
    trainer = small_trainer(tmp_path, epochs=10, batch_size=24, **options)
    trainer.run()
    rows = train_rows(tmp_path)
    rates = [row["lr"] for row in rows if row["kind"] == "train"]
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 6)
    assert [row["epoch"] for row in rows if row["kind"] == "val"] == [4, 8, 10]
    for model, _, _, _, _, amp, *_ in given:
        assert model is trainer.ema.module and amp is torch.bfloat16


def test_the_clock_goes_on(tmp_path):
    trainer = small_trainer(tmp_path, epochs=2, accumulate=2)
    trainer.run()
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint["images_seen"] == 2 * 24
    resumed = small_trainer(tmp_path, checkpoint, epochs=2, accumulate=2)
    assert (resumed.seconds, resumed.images_seen) == (trainer.seconds, 48)


def test_the_seed_decides_the_weights(tmp_path):
    weights = []
    for state, seed in ((5, 1), (6, 1), (6, 2)):
        torch.manual_seed(state)
        weights.append(small_trainer(tmp_path, seed=seed).model.class_embed.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def _be_rank_of_two(monkeypatch, rank: int) -> None:
    two = SimpleNamespace(rank=lambda: rank, world_size=lambda: 2)
    for module in ("engine", "run_state"):
        monkeypatch.setattr(f"detr_fast.training.{module}.processes", two)


def test_processes_start_alike_and_drop_differently(tmp_path, monkeypatch):
    weights, states = [], []
    for rank in range(2):
        _be_rank_of_two(monkeypatch, rank)
        trainer = small_trainer(tmp_path)
        weights.append(trainer.model.class_embed.weight)
        states.append(torch.get_rng_state())
    assert torch.equal(*weights) and not torch.equal(*states)
    trainer.train_on([next(iter(trainer.loader.epoch(0)))])
    assert trainer.images_seen == 2 * 4


def test_each_process_goes_on_with_its_own_random_numbers(tmp_path, monkeypatch):
    small_trainer(tmp_path, epochs=1, batch_size=8).run()
    checkpoint = load_checkpoint(tmp_path)
    checkpoint["rng"].append({"cpu": torch.Generator().manual_seed(9).get_state()})
    _be_rank_of_two(monkeypatch, 1)
    small_trainer(tmp_path, checkpoint, epochs=1, batch_size=4)
    assert torch.equal(torch.get_rng_state(), checkpoint["rng"][1]["cpu"])


def test_a_log_interval_leaves_the_losses_alone():
    """A CUDA graph writes each step's into the same tensors."""
    interval, losses = LogInterval(0, 0.0, 0.0), {"loss": torch.tensor(1.0)}
    for _ in range(3):
        interval.add(losses)
    assert losses["loss"] == 1 and interval.means() == {"loss": 1.0}


def test_averaged_weights_need_no_gradient():
    average = WeightAverage(nn.Linear(2, 2), 0.9)
    assert not any(p.requires_grad for p in average.module.parameters())
