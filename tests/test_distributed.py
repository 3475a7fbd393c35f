"""Several processes on one machine, as torchrun starts them, with gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detr_fast.losses import SetCriterion
from detr_fast.training import load_checkpoint


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
    done = torchrun("train", *data, *options, "--name", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" @[ IoU=") == 12  # one process prints
    assert "2 epochs of 2 steps of 6 images" in done.stdout
    run = tmp_path / "runs" / "two"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "val"] == [2, 4]
    assert len(load_checkpoint(run)["rng"]) == 2

    # An odd number of images, so that the processes' shares differ: the figures are those of one.
    names = (voc_folder / "ImageSets" / "Main" / "val.txt").read_text().split()
    assert len(names) == 6
    (voc_folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(names[:5]) + "\n")
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
            "1",
            "--amp",
            "none",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "5 images" in done.stdout
        figures.append(json.loads(out.read_text()))
    assert figures[0] == figures[1]

    done = torchrun("train", "--resume", str(run), "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 4" in done.stdout


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
