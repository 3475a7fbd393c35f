"""Several processes on one machine, as torchrun starts them, with gloo."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from detr_fast.cli import main
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


@pytest.fixture
def alone(capsys) -> Callable[..., SimpleNamespace]:
    """Runs a command in this process, without others."""

    def run(*arguments: str) -> SimpleNamespace:
        code = main(arguments)
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return run


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_two_processes_train_resume_and_evaluate(voc_folder, tmp_path, alone):
    two = partial(torchrun, cwd=tmp_path)
    data = ("--data", f"voc:{voc_folder}")
    options = ("--epochs", "2", "--batch-size", "3", "--num-queries", "60", "--device", "cpu")
    options += ("--amp", "none", "--lr", "1e-3")
    done = two("train", *data, *options, "--name", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" @[ IoU=") == 12  # one process prints
    assert "2 epochs of 2 steps of 6 images" in done.stdout
    run = tmp_path / "runs" / "two"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "val"] == [2, 4]
    assert rows[-1]["AR_100"] > 0  # something is found at all
    assert len(load_checkpoint(run)["rng"]) == 2

    # What was logged in training is what the checkpoint gives: the processes' batch statistics,
    # each of other images, were made one model. The test split has an odd number of images.
    figures = []
    test = ("--split", "test", "--device", "cpu", "--amp", "none")
    test += ("--batch-size", "2")  # three batches for two processes
    for name, start in {"two": two, "alone": alone}.items():
        out = tmp_path / f"{name}.json"
        done = start("eval", str(run), *test, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert "5 images" in done.stdout
        figures.append(json.loads(out.read_text()))
    assert figures[0] == figures[1]
    out = tmp_path / "val.json"
    done = alone("eval", str(run), "--amp", "none", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["AP"] == pytest.approx(rows[-1]["AP"], abs=1e-6)
    states = load_checkpoint(run)
    assert states["model"]["backbone.0.body.stage1.0.1.running_mean"].abs().sum() > 0

    done = two("train", "--resume", str(run), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "resumed at step 4" in done.stdout

    done = alone("train", "--resume", str(run), "--device", "cpu")
    assert done.returncode == 2
    assert "2 processes with 2 steps per epoch, here it would be 1 and 4" in done.stderr


def _one_of_two(rank: int, results: str) -> None:
    folder = Path(results)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.save(_statistics(folder), folder / f"statistics-{rank}.pt")
    torch.save(_box_loss(count=(5, 1)[rank]), folder / f"loss-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """The folder with what each of two processes has computed."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_one_of_two, (str(folder),), nprocs=2)
    return folder


def _statistics(folder: Path) -> dict:
    """Those of batch norm after an epoch, and the first ones as its last step left them."""
    images = Shapes(16, image_size=48, transforms=fixed_eval(None))
    config = TrainConfig.create(
        epochs=1, batch_size=4, num_queries=6, workers=0, warmup_steps=0, eval_every=9
    )
    trainer = Trainer(config, images, images, folder, torch.device("cpu"), quiet=True)
    step, seen = trainer.train_on, []

    def remember(batches):
        losses = step(batches)
        seen.append(trainer.model.backbone[0].body.stage1[0][1].running_mean.clone())
        return losses

    trainer.train_on = remember
    trainer.run()
    return {"seen": seen[-1], "buffers": list(trainer.eval_model.buffers())}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_processes_end_an_epoch_with_one_model(two_processes):
    first, second = (torch.load(two_processes / f"statistics-{rank}.pt") for rank in range(2))
    assert not torch.equal(first["seen"], second["seen"])  # they did see different images
    torch.testing.assert_close(first["buffers"], second["buffers"], atol=0, rtol=0)


def _box_loss(count: int) -> torch.Tensor:
    outputs = {"pred_logits": torch.zeros(1, 6, 4), "pred_boxes": torch.full((1, 6, 4), 0.5)}
    targets = [{"labels": torch.zeros(count).long(), "boxes": torch.full((count, 4), 0.4)}]
    return SetCriterion(3)(outputs, targets)["loss_bbox"]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_box_losses_are_divided_by_the_mean_number_of_boxes(two_processes):
    found = [torch.load(two_processes / f"loss-{rank}.pt").item() for rank in range(2)]
    # Each pair is off by 0.1 in each of four coordinates; 5 and 1 boxes are 3 on average.
    assert found == pytest.approx([5 * 0.4 / 3, 1 * 0.4 / 3])


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
