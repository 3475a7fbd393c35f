"""Several processes on one machine, as torchrun starts them, with gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detr_fast.data import Shapes, fixed_eval
from detr_fast.losses import SetCriterion
from detr_fast.training import TrainConfig, Trainer, distributed, load_checkpoint
from detr_fast.training.loader import default_workers


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    return subprocess.run(
        [*command, "-m", "detr_fast.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_two_processes_train_resume_and_evaluate(voc_folder, tmp_path):
    data = ("--data", f"voc:{voc_folder}")
    options = ("--epochs", "2", "--batch-size", "3", "--num-queries", "6", "--device", "cpu")
    options += ("--amp", "none", "--lr", "1e-3")
    done = torchrun("train", *data, *options, "--name", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" @[ IoU=") == 12  # one process prints
    assert "2 epochs of 2 steps of 6 images" in done.stdout
    run = tmp_path / "runs" / "two"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "val"] == [2, 4]
    assert len(load_checkpoint(run)["rng"]) == 2

    # What was logged in training is what the checkpoint gives: the processes' batch statistics,
    # each of other images, were made one model. The test split has an odd number of images.
    figures = []
    for start in (torchrun, _alone):
        out = tmp_path / f"{start.__name__}.json"
        done = start(
            "eval",
            str(run),
            "--split",
            "test",
            "--device",
            "cpu",
            "--out",
            str(out),
            "--batch-size",
            "2",  # three batches for two processes
            "--amp",
            "none",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "5 images" in done.stdout
        figures.append(json.loads(out.read_text()))
    assert figures[0] == figures[1]
    out = tmp_path / "val.json"
    done = _alone("eval", str(run), "--amp", "none", "--out", str(out), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["AP"] == pytest.approx(rows[-1]["AP"], abs=1e-6)
    states = load_checkpoint(run)
    assert states["model"]["backbone.0.body.stage1.0.1.running_mean"].abs().sum() > 0

    done = torchrun("train", "--resume", str(run), "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 4" in done.stdout

    alone = _alone("train", "--resume", str(run), "--device", "cpu", cwd=tmp_path)
    assert alone.returncode == 2
    assert "2 processes with 2 steps per epoch, here it would be 1 and 4" in alone.stderr


def _statistics_of_one_process(rank: int, store: str, results: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    images = Shapes(16, image_size=48, transforms=fixed_eval(None))
    config = TrainConfig.create(
        epochs=1, batch_size=4, num_queries=6, workers=0, warmup_steps=0, eval_every=9
    )
    folder = Path(results)
    trainer = Trainer(config, images, images, folder, torch.device("cpu"), quiet=True)
    step, seen = trainer.train_on, []

    def remember(batches):
        losses = step(batches)
        seen.append(trainer.model.backbone[0].body.stage1[0][1].running_mean.clone())
        return losses

    trainer.train_on = remember
    trainer.run()
    buffers = [buffer.clone() for buffer in trainer.eval_model.buffers()]
    torch.save({"seen": seen[-1], "buffers": buffers}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_processes_end_an_epoch_with_one_model(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.spawn(_statistics_of_one_process, arguments, nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert not torch.equal(first["seen"], second["seen"])  # they did see different images
    torch.testing.assert_close(first["buffers"], second["buffers"], atol=0, rtol=0)


def _loss_of_one_process(rank: int, store: str, results: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    outputs = {"pred_logits": torch.zeros(1, 6, 4), "pred_boxes": torch.full((1, 6, 4), 0.5)}
    count = (5, 1)[rank]
    targets = [{"labels": torch.zeros(count).long(), "boxes": torch.full((count, 4), 0.4)}]
    losses = SetCriterion(3)(outputs, targets)
    torch.save(losses["loss_bbox"], f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_box_losses_are_divided_by_the_mean_number_of_boxes(tmp_path):
    torch.multiprocessing.spawn(
        _loss_of_one_process, (str(tmp_path / "store"), str(tmp_path)), nprocs=2
    )
    found = [torch.load(tmp_path / f"{rank}.pt").item() for rank in range(2)]
    # Each pair is off by 0.1 in each of four coordinates; 5 and 1 boxes are 3 on average.
    assert found == pytest.approx([5 * 0.4 / 3, 1 * 0.4 / 3])


def _alone(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "detr_fast.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("device", ["cpu:7", "tpu", "cuda:x"])
def test_unknown_device(device):
    with pytest.raises(ValueError, match=f"unknown device '{device}', expected cpu, cuda or"):
        distributed.start(device)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    expected = "device cuda:3 is not available: torch sees 2 GPUs; start at most that many"
    with pytest.raises(ValueError, match=expected):
        distributed.start()


def test_workers_share_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert default_workers(torch.device("cuda")) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_workers(torch.device("cuda")) == 1
    assert default_workers(torch.device("cpu")) == 0
