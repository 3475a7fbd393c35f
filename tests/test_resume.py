"""Runs that go on exactly where they stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_cases import saved_steps, small_trainer, train_rows

from detr_fast.training import Trainer, load_checkpoint
from detr_fast.training.engine import Interrupted

pytest.importorskip("pycocotools")
TRAIN = ("--batch-size", "4", "--num-queries", "6", "--seed", "3", "--device", "cpu")


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


def test_killed_run_resumes_to_the_same_losses(voc_folder, tmp_path):
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
    killed = start(*options, "--name", "killed", "--workers", "0")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or '"epoch": 3' not in metrics.read_text():
        assert killed.poll() is None, killed.stdout.read()
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    output, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, output
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
def test_a_signal_to_all_processes(voc_folder, tmp_path, number):
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


def test_no_loss_is_missing_from_the_log_of_a_run_that_was_stopped(tmp_path):
    trainer = small_trainer(tmp_path, log_every=4, epochs=1)
    interrupt_at(trainer, 3)
    with pytest.raises(Interrupted, match="stopped at step 3"):
        trainer.run()
    small_trainer(tmp_path, load_checkpoint(tmp_path), log_every=4, epochs=1).run()
    rows = [row for row in train_rows(tmp_path) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [3, 4, 6]


def test_interrupted_in_the_middle_of_an_epoch(tmp_path):
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
def test_interrupted_at_the_last_step_of_an_epoch(tmp_path, epoch):
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


def test_interrupted_in_an_evaluation(tmp_path, monkeypatch):
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


def test_interrupted_in_an_evaluation_that_was_due(tmp_path, monkeypatch):
    """Likewise in the one with which a resumed run begins."""
    small_trainer(tmp_path, epochs=1).run()
    checkpoint = load_checkpoint(tmp_path) | {"evaluation_due": True}
    resumed = small_trainer(tmp_path, checkpoint, epochs=2)
    interrupt_evaluation(resumed, monkeypatch)
    with pytest.raises(Interrupted, match="stopped at step 6 of 12"):
        resumed.run()
    assert not load_checkpoint(tmp_path)["evaluation_due"]


def test_weights_that_are_not_finite_are_not_saved_by_an_interruption(tmp_path):
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
def test_an_evaluation_that_fails_leaves_the_training_before_it(tmp_path, monkeypatch, epoch):
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


def test_killed_between_the_row_of_an_evaluation_and_its_checkpoint(tmp_path, monkeypatch):
    """The row is not there twice."""
    small_trainer(tmp_path / "whole").run()
    killed = small_trainer(tmp_path / "killed")

    def kill():
        raise KeyboardInterrupt

    save = killed._save
    monkeypatch.setattr(killed, "_save", lambda name: save(name) if name == "last.pt" else kill())
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    assert [row["kind"] for row in train_rows(tmp_path / "killed")][-1] == "val"
    assert_resumed_as_whole(tmp_path / "killed", tmp_path / "whole", 1)


def test_a_long_epoch_is_saved_every_so_many_minutes(tmp_path):
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
def test_how_often_a_run_is_saved(tmp_path, minutes, steps):
    trainer = small_trainer(tmp_path, epochs=1, log_every=2)
    trainer.save_minutes = minutes
    saved = saved_steps(trainer)
    trainer.run()
    assert set(saved) == steps


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_rates_are_those_of_the_new_length_from_the_first_step_on(tmp_path, schedule):
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


def test_resuming_a_finished_run_only_evaluates(tmp_path):
    small_trainer(tmp_path, epochs=1).run()
    again = small_trainer(tmp_path, load_checkpoint(tmp_path), epochs=1)
    row = again.run()
    assert again.step == 6 and "AP50" in row
