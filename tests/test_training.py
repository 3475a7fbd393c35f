"""Training: schedules, samplers, checkpoints, and runs that go on exactly where they stopped."""

import concurrent.futures
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from detr_fast import _C, faults
from detr_fast.data import Shapes, fixed_eval, small_train
from detr_fast.models import detr_resnet18, detr_tiny
from detr_fast.models.weights import CheckpointError
from detr_fast.training import TrainConfig, Trainer, load_checkpoint, load_model
from detr_fast.training.averaging import WeightAverage
from detr_fast.training.checkpoint import ENTRIES, save_checkpoint
from detr_fast.training.datasets import open_data
from detr_fast.training.engine import Interrupted
from detr_fast.training.interval import LogInterval
from detr_fast.training.loader import TrainLoader
from detr_fast.training.logs import read_metrics
from detr_fast.training.optimizer import make_optimizer
from detr_fast.training.recipes import eval_recipe, train_recipe
from detr_fast.training.schedule import make_scheduler

pytest.importorskip("pycocotools")
TRAIN = ("--batch-size", "4", "--num-queries", "6", "--seed", "3", "--device", "cpu")


def train_rows(run: Path) -> list[dict]:
    """The training rows of a run, without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = {"images_per_second", "seconds", "train_seconds", "data_share"}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def small_trainer(
    run: Path, checkpoint=None, quiet: bool = True, device: str = "cpu", **options
) -> Trainer:
    """A trainer on 24 images of shapes."""
    run.mkdir(parents=True, exist_ok=True)
    config = TrainConfig.create(
        **{"batch_size": 4, "epochs": 3, "num_queries": 6, "workers": 0, "log_every": 1} | options
    )
    sets = [
        Shapes(24, image_size=48, seed=0, transforms=small_train(None), fresh=True),
        Shapes(8, image_size=48, seed=1, transforms=fixed_eval(None)),
    ]
    return Trainer(config, *sets, run, torch.device(device), checkpoint, quiet)


def saved_steps(trainer: Trainer) -> list[int]:
    """Fills with the steps at which a checkpoint is written."""
    save, steps = trainer._save, []

    def remember(name: str) -> None:
        steps.append(trainer.step)
        save(name)

    trainer._save = remember
    return steps


def interrupt_at(trainer: Trainer, number: int) -> None:
    """A signal comes within a step."""
    train_on = trainer.train_on

    def interrupted(batches):
        if trainer.step == number - 1:
            signal.raise_signal(signal.SIGINT)
        return train_on(batches)

    trainer.train_on = interrupted


def interrupt_evaluation(trainer: Trainer, monkeypatch) -> None:
    """A signal comes as an evaluation begins."""
    evaluate = trainer._evaluate

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(trainer, "_evaluate", interrupted)


def assert_resumed_as_whole(run: Path, whole: Path, epoch: int) -> None:
    """A run that ended before an epoch's evaluation goes on as one that did not."""
    checkpoint = load_checkpoint(run)
    assert checkpoint["step"] == 6 * epoch and checkpoint["evaluation_due"]
    small_trainer(run, checkpoint).run()
    assert train_rows(run) == train_rows(whole)
    for name in ("last.pt", "best.pt"):
        found, expected = load_checkpoint(run / name), load_checkpoint(whole / name)
        assert not found["evaluation_due"]
        for entry in ("step", "best_ap", "images_seen", "ema_updates"):
            assert found[entry] == expected[entry], (name, entry)
        for entry, value in expected["ema"].items():
            assert torch.equal(found["ema"][entry], value), (name, entry)


class TestResume:
    def test_killed_run_resumes_to_the_same_losses(self, voc_folder, tmp_path):
        """A process killed in mid-run, without any warning, then resumed with other workers."""
        command = [sys.executable, "-m", "detr_fast.cli", "train"]
        options = ["--data", f"voc:{voc_folder}", "--epochs", "8", "--runs", str(tmp_path), *TRAIN]

        def start(*arguments: str) -> subprocess.Popen:
            return subprocess.Popen(
                [*command, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
                text=True,
                start_new_session=True,
            )

        whole = start(*options, "--name", "whole", "--workers", "1")
        output, _ = whole.communicate(timeout=240)
        assert whole.returncode == 0, output

        killed = start(*options, "--name", "killed", "--workers", "0")
        metrics = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or '"epoch": 3' not in metrics.read_text():
            assert killed.poll() is None, killed.stdout.read()
            assert time.monotonic() < deadline, "the run made no progress"
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        steps_before = load_checkpoint(tmp_path / "killed")["step"]
        assert 0 < steps_before < load_checkpoint(tmp_path / "whole")["step"]

        resumed = start("--resume", str(tmp_path / "killed"))
        output, _ = resumed.communicate(timeout=240)
        assert resumed.returncode == 0, output
        assert f"resumed at step {steps_before}" in output
        assert train_rows(tmp_path / "killed") == train_rows(tmp_path / "whole")
        assert len({row["loss"] for row in train_rows(tmp_path / "whole") if "loss" in row}) > 5
        states = [load_checkpoint(tmp_path / name)["model"] for name in ("whole", "killed")]
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), name

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "scheduler"])
    def test_a_signal_to_all_processes(self, voc_folder, tmp_path, number):
        """It reaches the workers too; the run saves, says how to go on, and does go on."""
        command = [sys.executable, "-m", "detr_fast.cli", "train"]
        options = ["--data", f"voc:{voc_folder}", "--epochs", "50", "--workers", "2", *TRAIN]
        options += ["--runs", str(tmp_path)]
        run = tmp_path / "run"
        process = subprocess.Popen(
            [*command, *options, "--name", "run"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not (run / "last.pt").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "the run made no progress"
            time.sleep(0.01)
        os.killpg(process.pid, number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert f"resume with: detr-fast train --resume {run}" in error
        assert "Traceback" not in error
        step = load_checkpoint(run)["step"]
        assert f"stopped at step {step} of 150; " in error  # nothing is lost
        assert 3 <= step < 150
        resumed = subprocess.Popen(
            [*command, "--resume", str(run)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        for line in resumed.stdout:
            if f"resumed at step {step}" in line:
                break
        else:
            pytest.fail("the resumed run did not say where it goes on")
        resumed.kill()
        resumed.communicate()

    def test_no_loss_is_missing_from_the_log_of_a_run_that_was_stopped(self, tmp_path):
        trainer = small_trainer(tmp_path, log_every=4, epochs=1)
        interrupt_at(trainer, 3)
        with pytest.raises(Interrupted, match="stopped at step 3"):
            trainer.run()
        small_trainer(tmp_path, load_checkpoint(tmp_path), log_every=4, epochs=1).run()
        rows = [row for row in train_rows(tmp_path) if row["kind"] == "train"]
        assert [row["step"] for row in rows] == [3, 4, 6]

    def test_interrupted_in_the_middle_of_an_epoch(self, tmp_path):
        whole = small_trainer(tmp_path / "whole", dropout=0.1)
        whole.run()
        stopped = small_trainer(tmp_path / "stopped", dropout=0.1)
        handler = signal.getsignal(signal.SIGINT)
        interrupt_at(stopped, 8)
        with pytest.raises(Interrupted, match="stopped at step 8 of 18"):
            stopped.run()
        assert signal.getsignal(signal.SIGINT) is handler
        checkpoint = load_checkpoint(tmp_path / "stopped")
        assert checkpoint["step"] == 8
        small_trainer(tmp_path / "stopped", checkpoint, dropout=0.1).run()
        assert train_rows(tmp_path / "stopped") == train_rows(tmp_path / "whole")
        rows = [row for row in train_rows(tmp_path / "stopped") if row["kind"] == "train"]
        assert [row["step"] for row in rows] == list(range(1, 19))

    @pytest.mark.parametrize("epoch", [1, 2, 3])
    def test_interrupted_at_the_last_step_of_an_epoch(self, tmp_path, epoch):
        """Its evaluation is the first thing that the resumed run does."""
        small_trainer(tmp_path / "whole").run()
        stopped = small_trainer(tmp_path / "stopped")
        step = stopped.train_on

        def interrupt(batches):
            if stopped.step == 6 * epoch - 1:
                signal.raise_signal(signal.SIGINT)
            return step(batches)

        stopped.train_on = interrupt
        with pytest.raises(Interrupted, match=f"stopped at step {6 * epoch} of 18"):
            stopped.run()
        assert_resumed_as_whole(tmp_path / "stopped", tmp_path / "whole", epoch)

    def test_interrupted_in_an_evaluation(self, tmp_path, monkeypatch):
        """It is finished, and no further step is trained."""
        small_trainer(tmp_path / "whole").run()
        stopped = small_trainer(tmp_path / "stopped")
        interrupt_evaluation(stopped, monkeypatch)
        with pytest.raises(Interrupted, match="stopped at step 6 of 18"):
            stopped.run()
        checkpoint = load_checkpoint(tmp_path / "stopped")
        assert checkpoint["step"] == 6 and not checkpoint["evaluation_due"]
        small_trainer(tmp_path / "stopped", checkpoint).run()
        assert train_rows(tmp_path / "stopped") == train_rows(tmp_path / "whole")

    def test_interrupted_in_an_evaluation_that_was_due(self, tmp_path, monkeypatch):
        """Likewise in the one with which a resumed run begins."""
        small_trainer(tmp_path, epochs=1).run()
        checkpoint = load_checkpoint(tmp_path) | {"evaluation_due": True}
        resumed = small_trainer(tmp_path, checkpoint, epochs=2)
        interrupt_evaluation(resumed, monkeypatch)
        with pytest.raises(Interrupted, match="stopped at step 6 of 12"):
            resumed.run()
        assert not load_checkpoint(tmp_path)["evaluation_due"]

    def test_weights_that_are_not_finite_are_not_saved_by_an_interruption(self, tmp_path):
        trainer = small_trainer(tmp_path, log_every=100)
        step = trainer.train_on

        def spoil(batches):
            if trainer.step == 7:
                signal.raise_signal(signal.SIGINT)
                losses = step(batches)
                return {**losses, "grad_norm": torch.tensor(torch.nan)}
            return step(batches)

        trainer.train_on = spoil
        with pytest.raises(ValueError, match="grad_norm is nan"):
            trainer.run()
        assert load_checkpoint(tmp_path)["step"] == 6

    @pytest.mark.parametrize("epoch", [1, 2])
    def test_an_evaluation_that_fails_leaves_the_training_before_it(
        self, tmp_path, monkeypatch, epoch
    ):
        small_trainer(tmp_path / "whole").run()
        failing = small_trainer(tmp_path / "failing")
        load = failing.val_set.__class__.__getitem__

        def broken(data, index):
            if data is failing.val_set and failing.step == 6 * epoch:
                raise ValueError("image 3 cannot be read")
            return load(data, index)

        with monkeypatch.context() as patched:
            patched.setattr(failing.val_set.__class__, "__getitem__", broken)
            with pytest.raises(ValueError, match="image 3 cannot be read"):
                failing.run()
        assert_resumed_as_whole(tmp_path / "failing", tmp_path / "whole", epoch)

    def test_killed_between_the_row_of_an_evaluation_and_its_checkpoint(
        self, tmp_path, monkeypatch
    ):
        """The row is not there twice."""
        small_trainer(tmp_path / "whole").run()
        killed = small_trainer(tmp_path / "killed")

        def kill():
            raise KeyboardInterrupt

        save = killed._save
        monkeypatch.setattr(
            killed, "_save", lambda name: save(name) if name == "last.pt" else kill()
        )
        with pytest.raises(KeyboardInterrupt):
            killed.run()
        assert [row["kind"] for row in train_rows(tmp_path / "killed")][-1] == "val"
        assert_resumed_as_whole(tmp_path / "killed", tmp_path / "whole", 1)

    def test_checkpoints_that_do_not_tell_whether_they_were_evaluated(self, tmp_path):
        small_trainer(tmp_path / "old", epochs=1, warmup_steps=0).run()
        checkpoint = load_checkpoint(tmp_path / "old")
        del checkpoint["evaluation_due"]
        small_trainer(tmp_path / "old", checkpoint, epochs=2, warmup_steps=0).run()
        steps = [row["step"] for row in train_rows(tmp_path / "old") if row["kind"] == "val"]
        assert steps == [6, 12]

    def test_a_long_epoch_is_saved_every_so_many_minutes(self, tmp_path):
        """At the next step that is logged, from which a killed run goes on."""
        small_trainer(tmp_path / "whole", epochs=2, log_every=2).run()
        killed = small_trainer(tmp_path / "killed", epochs=2, log_every=2)
        step, saved = killed.train_on, saved_steps(killed)

        def half_an_hour_later(batches):
            if killed.step == 8:  # this one is the ninth
                killed._saved_at -= 30 * 60
            if killed.step == 11:
                raise KeyboardInterrupt
            return step(batches)

        killed.train_on = half_an_hour_later
        with pytest.raises(KeyboardInterrupt):
            killed.run()
        assert saved[-1] == 10 and saved.count(10) == 1 and set(saved) == {6, 10}
        checkpoint = load_checkpoint(tmp_path / "killed")
        assert checkpoint["step"] == 10 and not checkpoint["evaluation_due"]
        small_trainer(tmp_path / "killed", checkpoint, epochs=2, log_every=2).run()
        assert train_rows(tmp_path / "killed") == train_rows(tmp_path / "whole")

    @pytest.mark.parametrize(("minutes", "steps"), [(0.0, {6}), (1e-9, {2, 4, 6})])
    def test_how_often_a_run_is_saved(self, tmp_path, minutes, steps):
        trainer = small_trainer(tmp_path, epochs=1, log_every=2)
        trainer.save_minutes = minutes
        saved = saved_steps(trainer)
        trainer.run()
        assert set(saved) == steps

    @pytest.mark.parametrize("schedule", ["step", "cosine"])
    def test_rates_are_those_of_the_new_length_from_the_first_step_on(self, tmp_path, schedule):
        options = {"schedule": schedule, "lr_drop": 0.5, "warmup_steps": 0}
        small_trainer(tmp_path, epochs=2, **options).run()
        checkpoint = load_checkpoint(tmp_path)
        whole = small_trainer(tmp_path, epochs=6, **options)
        for _ in range(checkpoint["step"]):
            whole.optimizer.step()
            whole.scheduler.step()
        rates = [
            [group["lr"] for group in state["param_groups"]]
            for state in (
                checkpoint["optimizer"],
                whole.optimizer.state_dict(),
                small_trainer(tmp_path, checkpoint, epochs=6, **options).optimizer.state_dict(),
            )
        ]
        assert rates[0] != rates[1] == rates[2]

    def test_resuming_a_finished_run_only_evaluates(self, tmp_path):
        small_trainer(tmp_path, epochs=1).run()
        again = small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=1)
        row = again.run()
        assert again.step == 6 and "AP50" in row


class TestCheckpoint:
    def test_loads_with_weights_only_and_holds_its_config(self, tmp_path):
        trainer = small_trainer(tmp_path, epochs=1, query_mode="learned")
        trainer.run()
        state = torch.load(tmp_path / "last.pt", weights_only=True)
        assert TrainConfig.from_dict(state["config"]) == trainer.config
        assert state["class_names"] == ["circle", "square", "triangle"]
        model = load_model(load_checkpoint(tmp_path / "last.pt"))
        image = torch.randn(1, 3, 48, 48)
        with torch.no_grad():
            torch.testing.assert_close(
                model(image)["pred_boxes"], trainer.eval_model.eval()(image)["pred_boxes"]
            )

    def test_the_best_epoch_is_written_once(self, tmp_path, monkeypatch):
        """Its two names are one file, until the next epoch's checkpoint takes one of them."""
        figures = iter([0.3, 0.2, 0.4])
        row = {"AP50": 0.5, "AP75": 0.5, "per_class": {}}
        monkeypatch.setattr(
            "detr_fast.evaluation.evaluate", lambda *_: {"AP": next(figures), **row}
        )
        last, best = tmp_path / "last.pt", tmp_path / "best.pt"
        for epochs, same, steps in ((1, True, (6, 6)), (2, False, (12, 6)), (3, True, (18, 18))):
            checkpoint = load_checkpoint(tmp_path) if last.exists() else None
            small_trainer(tmp_path, checkpoint, epochs=epochs, warmup_steps=0).run()
            assert last.samefile(best) == same
            assert tuple(load_checkpoint(path)["step"] for path in (last, best)) == steps

    def test_of_equal_epochs_the_last_is_the_best(self, tmp_path, monkeypatch):
        row = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "per_class": {}}
        monkeypatch.setattr("detr_fast.evaluation.evaluate", lambda *_: dict(row))
        small_trainer(tmp_path, epochs=2).run()
        assert load_checkpoint(tmp_path / "best.pt")["step"] == 12

    def test_waiting_for_the_device_counts_as_training(self, tmp_path, monkeypatch):
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

    def test_without_hard_links_the_best_is_copied(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError("no hard links here")

        monkeypatch.setattr("os.link", refuse)
        small_trainer(tmp_path, epochs=1).run()
        assert (tmp_path / "last.pt").read_bytes() == (tmp_path / "best.pt").read_bytes()
        assert not (tmp_path / "last.pt").samefile(tmp_path / "best.pt")

    def test_a_model_of_another_version(self, tmp_path):
        small_trainer(tmp_path, epochs=1).run()
        checkpoint = load_checkpoint(tmp_path)
        for part, change in (
            ("model_args", {"depth": 3}),
            ("ema", {"class_embed.weight": torch.zeros(1, 1)}),
        ):
            with pytest.raises(CheckpointError, match="no model of this version"):
                load_model(checkpoint | {part: checkpoint[part] | change})

    def test_a_failed_write_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "last.pt"
        save_checkpoint(path, {"step": 1})
        with pytest.raises(Exception, match="pickle"):
            save_checkpoint(path, {"step": 2, "bad": lambda: None})
        assert torch.load(path, weights_only=True)["step"] == 1
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
    @pytest.mark.parametrize("size", [10, 10_000_000])
    def test_a_full_disk_is_named(self, tmp_path, size):
        path = tmp_path / "last.pt"
        path.write_bytes(b"old")
        path.with_name("last.pt.tmp").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"No space left on device: '.*last\.pt'"):
            save_checkpoint(path, {"weights": torch.zeros(size)})
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

    def test_errors_name_the_file(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"none: no such file"):
            load_checkpoint(tmp_path / "none")
        (tmp_path / "text.pt").write_text("nothing")
        with pytest.raises(CheckpointError, match=r"text\.pt cannot be read"):
            load_checkpoint(tmp_path / "text.pt")
        torch.save({"a": 1}, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=r"other\.pt is not a checkpoint"):
            load_checkpoint(tmp_path / "other.pt")
        torch.save({"format": 99}, tmp_path / "future.pt")
        with pytest.raises(CheckpointError, match=r"future\.pt has format 99"):
            load_checkpoint(tmp_path / "future.pt")
        save_checkpoint(tmp_path / "part.pt", {"step": 1})
        with pytest.raises(CheckpointError, match=r"part\.pt is incomplete: it lacks model, "):
            load_checkpoint(tmp_path / "part.pt")
        entries = dict.fromkeys(ENTRIES)
        for config, kind in ((3, "int"), ([["model", "tiny"]], "list"), (None, "NoneType")):
            save_checkpoint(tmp_path / "odd.pt", {**entries, "config": config})
            with pytest.raises(CheckpointError, match=rf"odd\.pt holds a {kind} as its config"):
                load_checkpoint(tmp_path / "odd.pt")
        for config, said in (
            ({"model": "vit"}, "model is 'vit'"),
            ({"blur": 1, 2: 3}, "with options 2, blur"),
        ):
            save_checkpoint(tmp_path / "new.pt", {**entries, "config": config})
            with pytest.raises(CheckpointError, match=rf"new\.pt is from another .*{said}"):
                load_checkpoint(tmp_path / "new.pt")
        save_checkpoint(tmp_path / "whole.pt", {"weights": torch.randn(10000)})
        half = (tmp_path / "whole.pt").read_bytes()[:20000]
        (tmp_path / "half.pt").write_bytes(half)
        with pytest.raises(CheckpointError, match=r"half\.pt cannot be read"):
            load_checkpoint(tmp_path / "half.pt")


class TestEngine:
    def test_it_learns_a_few_images_by_heart(self, tmp_path):
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

    def test_accumulated_batches_are_one_large_batch(self, tmp_path):
        """Without batch norm and with equal numbers of boxes, gradients and losses agree."""
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
        targets = [{"labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.5)}] * 8
        images, mask = torch.randn(8, 3, 48, 48), torch.zeros(8, 48, 48, dtype=torch.bool)
        halves = [(images[:4], mask[:4], targets[:4]), (images[4:], mask[4:], targets[4:])]
        losses = [
            trainer.train_on(batches)
            for trainer, batches in zip(trainers, ([(images, mask, targets)], halves), strict=True)
        ]
        for a, b in zip(
            trainers[0].model.parameters(), trainers[1].model.parameters(), strict=True
        ):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-4)

    def test_logged_losses_are_means_over_the_steps_since_the_last_row(self, tmp_path):
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

    def test_averaged_weights(self, tmp_path):
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
        assert not torch.equal(
            trainer.model.class_embed.weight, trainer.eval_model.class_embed.weight
        )

    def test_averaging_reads_nothing_from_the_device(self):
        """The meta device has no values that could be read."""
        model = nn.BatchNorm1d(1, device="meta")
        average = WeightAverage(model, 0.3)
        for _ in range(3):
            average.update(model)
        assert average.updates == 3

    def test_averaging_goes_on_after_resuming(self, tmp_path):
        """With as many updates as there were, which decide how fast it follows."""
        small_trainer(tmp_path, epochs=1).run()
        resumed = small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=2)
        assert resumed.ema.updates == resumed.step == 6

    def test_predictions_that_are_not_finite_stop_the_run_and_name_the_step(self, tmp_path):
        small_trainer(tmp_path, epochs=1).run()
        before = (tmp_path / "last.pt").read_bytes()
        trainer = small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=2)
        nn.init.constant_(trainer.model.class_embed.bias, math.nan)
        with pytest.raises(ValueError, match=r"step 7: .*pred_logits.* holds NaN"):
            trainer.run()
        assert (tmp_path / "last.pt").read_bytes() == before

    def test_a_diverged_run_stops_and_leaves_the_checkpoint(self, tmp_path):
        """Also on images without objects, where there is nothing to match."""
        small_trainer(tmp_path, epochs=1).run()
        before = (tmp_path / "last.pt").read_bytes()
        trainer = small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=2)
        empty = {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
        step = trainer.train_on
        trainer.train_on = lambda batches: step(
            [(images, mask, [empty] * len(targets)) for images, mask, targets in batches]
        )
        nn.init.constant_(trainer.model.class_embed.bias, math.nan)
        with pytest.raises(ValueError, match="loss is nan by step 7: the training diverged"):
            trainer.run()
        assert (tmp_path / "last.pt").read_bytes() == before

    @pytest.mark.parametrize("found_by", ["log", "checkpoint"])
    def test_what_the_gpu_found_in_matching_is_raised(self, tmp_path, monkeypatch, found_by):
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
        with pytest.raises(
            ValueError, match=r"^by step 8: outputs\['pred_boxes'\]\[2, 5\] must be"
        ):
            trainer.run()
        assert load_checkpoint(tmp_path)["step"] == 6

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["circle", "triangle", "square"], "class 1 is 'square' in .* and 'triangle' in the v"),
            (["circle", "square"], "training data has 3 classes, the validation data 2"),
        ],
    )
    def test_other_classes_in_validation_are_refused(self, tmp_path, names, message):
        train, val = (Shapes(4, image_size=48, transforms=fixed_eval(None)) for _ in range(2))
        val.class_names = names
        with pytest.raises(ValueError, match=message):
            Trainer(TrainConfig.create(), train, val, tmp_path, torch.device("cpu"), quiet=True)

    def test_more_accumulation_than_batches_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="accumulate is 7, but an epoch has only 6 batches"):
            small_trainer(tmp_path, accumulate=7)

    def test_resuming_with_other_data_is_refused(self, tmp_path):
        small_trainer(tmp_path, epochs=2).run()
        with pytest.raises(CheckpointError, match=r"1 processes with 6 steps.* would be 1 and 3"):
            small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=2, batch_size=8)

    def test_validation_without_objects_still_writes_the_best(self, tmp_path):
        trainer = small_trainer(tmp_path, epochs=1)
        for index in range(len(trainer.val_set)):
            record = trainer.val_set.record(index)
            record.boxes, record.labels = record.boxes[:0], record.labels[:0]
        trainer.val_set.record = {i: trainer.val_set.record(i) for i in range(8)}.get
        trainer.run()
        assert (tmp_path / "best.pt").exists()

    def test_outside_the_main_thread(self, tmp_path):
        trainer = small_trainer(tmp_path / "new folder", epochs=1)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert "AP" in pool.submit(trainer.run).result()

    def test_metrics_beyond_the_checkpoint_are_dropped(self, tmp_path):
        trainer = small_trainer(tmp_path, epochs=1)
        trainer.run()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "step": 999, "epoch": 1}\n[1]\n{"kind": "tra')
        small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=1).run()
        assert all(row["step"] <= 6 for row in train_rows(tmp_path))

    def test_images_without_any_object(self, tmp_path):
        trainer = small_trainer(tmp_path, epochs=1)
        empty = {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
        mask = torch.zeros(2, 48, 48, dtype=torch.bool)
        losses = trainer.train_on([(torch.randn(2, 3, 48, 48), mask, [empty, empty])])
        assert losses["loss"].isfinite() and losses["loss_bbox"] == 0


class TestLoader:
    def batches(self, workers: int = 0, first: int = 0, rank: int = 0, world: int = 1) -> list:
        data = Shapes(24, image_size=48, seed=0, transforms=small_train(None), fresh=True)
        loader = TrainLoader(data, 4, seed=1, workers=workers, rank=rank, world_size=world)
        return [images for images, _, _ in loader.epoch(2, first_batch=first)]

    def test_the_same_whatever_the_workers_and_wherever_it_starts(self):
        expected = self.batches()
        assert len(expected) == 6
        for found in (self.batches(workers=2), self.batches(workers=1)):
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        later = self.batches(first=4)
        assert all(torch.equal(a, b) for a, b in zip(expected[4:], later, strict=True))

    def test_transforms_differ_from_epoch_to_epoch(self):
        data = Shapes(8, image_size=48, seed=0, transforms=small_train(None))
        loader = TrainLoader(data, 8, seed=1, workers=0)
        first, second = (next(iter(loader.epoch(epoch)))[0].sum((1, 2, 3)) for epoch in (0, 1))
        assert not torch.allclose(first.sort().values, second.sort().values)

    def test_does_not_touch_the_random_state_of_training(self):
        before = torch.get_rng_state()
        self.batches()
        assert torch.equal(before, torch.get_rng_state())

    def test_processes_share_the_images(self):
        data = Shapes(24, image_size=48)
        seen = []
        for rank in range(3):
            loader = TrainLoader(data, 4, seed=1, workers=0, rank=rank, world_size=3)
            loader.batches.epoch = 5
            seen += [index for batch in loader.batches for _, index in batch]
        assert sorted(seen) == list(range(24))

    def test_fewer_images_than_a_batch(self):
        loader = TrainLoader(Shapes(3, image_size=48), 8, seed=1, workers=0)
        assert [len(batch) for batch in loader.batches] == [3]


class TestSchedule:
    def rates(self, total: int = 100, **options) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = make_scheduler(optimizer, total_steps=total, **options)
        rates = []
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return rates

    def test_step(self):
        rates = self.rates(schedule="step", warmup_steps=4, lr_drop=0.8)
        assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
        assert rates[79] == 1.0 and rates[80] == pytest.approx(0.1)

    def test_cosine(self):
        rates = self.rates(schedule="cosine", warmup_steps=0, lr_drop=1.0)
        assert rates[50] == pytest.approx(0.5)
        assert rates[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
        assert rates[-1] < 0.001

    def test_an_unknown_schedule_is_an_error(self):
        with pytest.raises(ValueError, match="schedule is 'cosin', expected one of step, cosine"):
            self.rates(schedule="cosin", warmup_steps=0, lr_drop=1.0)

    def test_warm_up_never_fills_a_short_run(self):
        assert self.rates(20, schedule="step", warmup_steps=200, lr_drop=1.0)[2:] == [1.0] * 18

    def test_backbone_rate(self):
        model = detr_resnet18(num_classes=2, num_queries=3)
        rest, backbone = make_optimizer(model, 1e-4, 1e-5, 1e-4).param_groups
        assert (rest["lr"], backbone["lr"]) == (1e-4, 1e-5)
        assert len(backbone["params"]) == len(list(model.backbone[0].parameters()))
        frozen = detr_resnet18(num_classes=2, num_queries=3, trainable_layers=0)
        assert len(make_optimizer(frozen, 1e-4, 1e-5, 1e-4).param_groups) == 1
        assert rest["weight_decay"] == backbone["weight_decay"] == 1e-4


class TestConfig:
    def test_defaults_follow_the_model(self):
        paper = TrainConfig.create(model="resnet50")
        assert (paper.lr, paper.lr_backbone, paper.clip, paper.epochs) == (1e-4, 1e-5, 0.1, 300)
        assert paper.backbone_weights == "imagenet" and paper.recipe == "detr"
        assert TrainConfig.create() == TrainConfig()
        assert TrainConfig.create(model="resnet50", lr=3e-4).lr == 3e-4

    @pytest.mark.parametrize(
        ("options", "rate"),
        [
            ({"model": "resnet18"}, 1e-5),
            ({"model": "resnet18", "backbone_weights": "weights.pth", "lr": 3e-4}, 1e-5),
            ({"model": "resnet18", "backbone_weights": None}, 1e-4),
            ({"model": "resnet18", "backbone_weights": None, "lr": 3e-4}, 3e-4),
            ({"model": "resnet18", "backbone_weights": None, "lr_backbone": 2e-5}, 2e-5),
            ({"model": "resnet18", "backbone_weights": None, "init_from": "detr.pth"}, 1e-5),
            ({"lr": 1e-3}, 1e-3),
        ],
    )
    def test_the_backbones_rate_follows_its_weights(self, options, rate):
        config = TrainConfig.create(**options)
        assert config.to_dict()["lr_backbone"] == rate
        # However it is built. (Alone, the class takes no default of the paper.)
        direct = {"lr": config.lr, "backbone_weights": config.backbone_weights, **options}
        assert TrainConfig(**direct).lr_backbone == rate

    @pytest.mark.parametrize("build", [TrainConfig, TrainConfig.create])
    def test_memory_for_the_cache_turns_it_on(self, build):
        assert build(cache_gb=8.0).cache is True and build().cache is False
        assert build(cache_gb=8.0, cache=False).cache is False

    def test_numbers_of_other_types_and_paths_become_plain_values(self):
        config = TrainConfig(
            model="resnet18",
            lr=np.float32(0.5),
            clip=1,
            epochs=np.int64(3),
            workers=np.uint8(2),
            image_size=(np.int64(64), 96),
            schedule=np.str_("cosine"),
            backbone_weights=Path("w.pth"),
        )
        values = config.to_dict()
        plain = {"lr": 0.5, "clip": 1.0, "epochs": 3, "workers": 2, "image_size": (64, 96)}
        plain |= {"schedule": "cosine", "backbone_weights": "w.pth"}
        for name, value in plain.items():
            assert values[name] == value and type(values[name]) is type(value), name
        assert all(type(side) is int for side in config.image_size)
        assert TrainConfig(init_from=Path("run")).init_from == "run"

    def test_round_trip(self):
        config = TrainConfig.create(image_size=(240, 320))
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": "vgg"}, "model is 'vgg', expected one of tiny, resnet18, "),
            ({"epochs": 0}, "epochs is 0"),
            ({"epochs": 2.5}, r"epochs is 2\.5, expected a whole number"),
            ({"seed": -1}, "seed is -1"),
            ({"lr": math.nan}, "lr is nan"),
            ({"eos_coef": -1.0}, r"eos_coef is -1\.0"),
            ({"image_size": (1, 1)}, r"image_size is \(1, 1\), expected at least 32"),
            ({"recipe": "detr", "flip_vertical": True}, "belong to the small recipe"),
            ({"lr": -1.0}, r"lr is -1\.0"),
            ({"schedule": "linear"}, "schedule is 'linear', expected one of step, cosine"),
            ({"cache_gb": 0.0}, r"cache_gb is 0\.0, expected more than 0"),
            ({"cache_gb": 1e305}, r"cache_gb is 1e\+305, expected more than 0, less than 1e9"),
            ({"dropout": 1.5}, r"dropout is 1\.5"),
            ({"ema": 1.0}, r"ema is 1\.0"),
            ({"lr_drop": 0.0}, r"lr_drop is 0\.0"),
            ({"model": "resnet18", "stride": 8}, "stride is an option of the tiny model"),
            ({"backbone_weights": "imagenet"}, "no pretrained backbone"),
            ({"boxes": "cut"}, "boxes is 'cut', expected one of error, clip"),
            ({"data": "voc:x", "voc_origin": 2}, "voc_origin is 2, expected one of 0, 1"),
            ({"voc_origin": 1}, "voc_origin is 1, but shapes is not a Pascal VOC folder"),
            (
                {"voc_origin": 1, "data": "coco:a:b", "val_data": "coco:c:d"},
                "voc_origin is 1, but neither coco:a:b nor coco:c:d is a Pascal VOC folder",
            ),
            ({"amp": "fp16"}, "amp is 'fp16', expected one of auto, none, bf16"),
            ({"recipe": "DETR"}, "recipe is 'DETR', expected one of small, detr"),
            ({"cost_class": 0.0, "cost_bbox": 0, "cost_giou": 0}, "cost_giou are all 0, expected"),
            ({"weight_class": 0, "weight_bbox": 0, "weight_giou": 0}, "weight_giou are all 0"),
            ({"compile": "no"}, "compile is 'no', expected True or False"),
            ({"epochs": True}, "epochs is True, expected a whole number"),
            ({"lr": "1e-4"}, "lr is '1e-4', expected a number"),
            ({"seed": None}, "seed is None, expected a whole number"),
            ({"lr": 10**400}, "lr is beyond the range of a float, expected a number"),
            ({"epochs": np.float64(2)}, r"epochs is .*2\.0.*, expected a whole number"),
            ({"compile": np.int64(1)}, "compile is .*1.*, expected True or False"),
            ({"data": Path("shapes")}, r"data is .*, expected a string"),
            ({"backbone_weights": b"w.pth"}, r"backbone_weights is .*, expected a string"),
            ({"image_size": (240,)}, r"image_size is \(240,\), expected \(height, width\)"),
            ({"image_size": (240.0, 320.0)}, r"image_size is .*, expected \(height, width\)"),
        ],
    )
    def test_errors_name_the_option(self, options, message):
        with pytest.raises(ValueError, match=message):
            TrainConfig.create(**options)
        with pytest.raises(ValueError, match=message):
            TrainConfig(**options)
        with pytest.raises(ValueError, match=message):
            TrainConfig.from_dict(TrainConfig().to_dict() | options)
        with pytest.raises(ValueError, match=message):
            replace(TrainConfig(), **options)

    def test_an_unknown_option_is_named(self):
        with pytest.raises(ValueError, match="unknown training option 'momentum'"):
            TrainConfig.create(momentum=0.9)

    def test_an_older_configuration_has_the_defaults_of_what_is_new(self):
        older = {"model": "resnet50", "epochs": 300, "recipe": "detr", "image_size": None}
        assert TrainConfig.from_dict(older) == TrainConfig(
            model="resnet50", epochs=300, recipe="detr"
        )

    @pytest.mark.parametrize("recipe", [train_recipe, eval_recipe])
    def test_an_unknown_recipe_is_an_error(self, recipe):
        with pytest.raises(ValueError, match="recipe is 'DETR', expected one of small, detr"):
            recipe(SimpleNamespace(recipe="DETR"))


def test_open_data_gives_both_sets_the_same_classes(voc_folder):
    train, val = open_data(TrainConfig.create(data=f"voc:{voc_folder}"))
    assert train.class_names == val.class_names and (len(train), len(val)) == (12, 6)


def test_model_builds_from_config():
    config = TrainConfig.create(model="resnet18", backbone_weights=None, query_mode="anchor")
    args = config.model_args(num_classes=2)
    assert args["norm"] == "batch" and args["trainable_layers"] == 5
    args_with_weights = TrainConfig.create(model="resnet18").model_args(num_classes=2)
    assert args_with_weights["norm"] == "frozen" and args_with_weights["trainable_layers"] == 3
    assert type(detr_resnet18(**args).query_embed).__name__ == "AnchorQueries"
    assert detr_tiny(**TrainConfig.create(stride=16).model_args(3)).backbone[0].num_channels == 256
