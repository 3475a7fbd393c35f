"""Whole runs of training, and the commands, on a GPU."""

import itertools
from pathlib import Path

import pytest
import torch
from devices import NoWait, needs_cuda
from training_cases import small_trainer, train_rows

from detr_fast.cli import main
from detr_fast.training.checkpoint import load_checkpoint

pytestmark = needs_cuda
GPU = "cuda:0"
OPTIONS = ["--epochs", "2", "--batch-size", "4", "--num-queries", "6", "--workers", "1"]


def logged(run: Path, name: str) -> list[float]:
    """A figure of all steps."""
    return [row[name] for row in train_rows(run) if name in row]


def test_a_run_and_a_longer_one(tmp_path):
    trainer = small_trainer(tmp_path, device=GPU, epochs=2)
    row = trainer.run()
    losses = logged(tmp_path, "loss")
    assert len(losses) == 12 and len(set(losses)) == 12
    assert 0 <= row["AP"] <= 1 and trainer.ema.updates == 12
    assert all(p.device == trainer.device for p in trainer.model.parameters())
    resumed = small_trainer(tmp_path, load_checkpoint(tmp_path), device=GPU, epochs=3)
    resumed.run()
    assert resumed.step == 18


@pytest.mark.parametrize(
    "options",
    [{"amp": "bf16"}, {"checkpointing": True}, {"compile": True}, {"accumulate": 2}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_speed_and_memory(tmp_path, options):
    small_trainer(tmp_path, device=GPU, epochs=1, **options).run()
    assert len(logged(tmp_path, "loss")) == 6 // options.get("accumulate", 1)


def test_a_run_as_a_cuda_graph(tmp_path):
    """The learning rate, which a schedule changes, and averaged weights follow it."""
    options = {"device": GPU, "epochs": 3, "image_size": (48, 48), "schedule": "cosine"}
    trainer = small_trainer(tmp_path, cuda_graph=True, **options)
    assert trainer.graphed is not None
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.run()
    assert trainer.graphed is not None  # it did not fall back
    rates = logged(tmp_path, "lr")
    assert len(set(rates)) == len(rates) == 18
    assert all(isinstance(group["lr"], torch.Tensor) for group in trainer.optimizer.param_groups)
    for then, now, mean in zip(
        before, trainer.model.parameters(), trainer.ema.module.parameters(), strict=True
    ):
        assert torch.isfinite(now).all()
        assert not now.requires_grad or not torch.equal(now, then)
        assert not torch.equal(mean, then) or torch.equal(now, then)
    resumed = small_trainer(
        tmp_path, load_checkpoint(tmp_path), cuda_graph=True, **options | {"epochs": 4}
    )
    resumed.run()
    assert resumed.step == 24


def test_between_two_lines_of_the_log_nothing_waits(tmp_path):
    """Steps with what follows each: the schedule and averaged weights."""
    trainer = small_trainer(tmp_path, device=GPU)
    trainer.parallel.train()
    epochs = (trainer.loader.epoch(epoch) for epoch in itertools.count())
    batches = trainer.prefetcher.batches(itertools.chain.from_iterable(epochs))
    loaded = [next(batches) for _ in range(8)]
    for batch in loaded[:3]:
        trainer.train_on([batch])
    with NoWait():
        for batch in loaded[3:]:
            losses = trainer.train_on([batch])
    trainer._check_matching()
    assert torch.isfinite(losses["loss"])


def test_commands(tmp_path, monkeypatch, voc_folder, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["--data", f"voc:{voc_folder}"]
    where = ["--device", GPU]
    assert main(["train", *data, *OPTIONS, *where, "--name", "run", "--debug"]) == 0
    assert main(["eval", "runs/run", *where, "--debug"]) == 0
    pictures = str(next(voc_folder.glob("JPEGImages/*")))
    assert main(["predict", "runs/run", pictures, *where, "--debug"]) == 0
    assert main(["benchmark", *data, *OPTIONS[2:], "--steps", "2", *where, "--debug"]) == 0
    assert "is the bottleneck" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--decode", "cuda"], ["--cuda-graph"]])
def test_commands_with_options_of_a_gpu(tmp_path, monkeypatch, voc_folder, capsys, options):
    monkeypatch.chdir(tmp_path)
    data = ["--data", f"voc:{voc_folder}", "--image-size", "48", "64"]
    where = ["--device", GPU, "--debug"]
    assert main(["train", *data, *OPTIONS, *options, *where, "--name", "run"]) == 0
    assert main(["benchmark", *data, *OPTIONS[2:], *options, "--steps", "2", *where]) == 0
    said = capsys.readouterr().out
    assert "no CUDA graph" not in said and "without a CUDA graph" not in said
    table = said[said.rindex("phase ") :]
    assert ("graph " in table) == ("--cuda-graph" in options) == ("forward " not in table)
