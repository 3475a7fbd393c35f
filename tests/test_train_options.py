"""Options of training that are about speed and memory, and the benchmark command."""

import re

import pytest
import torch
from training_cases import small_trainer

from detr_fast import _C
from detr_fast.cli import main
from detr_fast.cli.benchmark import measure
from detr_fast.data import Batch
from detr_fast.training import TrainConfig
from detr_fast.training.datasets import open_data
from detr_fast.training.graph import WARM_UP, cuda_graph_obstacle
from detr_fast.training.logs import ProgressBar
from detr_fast.training.memory import is_out_of_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def fails_beyond(trainer, images: int) -> list[int]:
    """Makes the model run out of memory with more images; returns the batch sizes it sees."""
    forward, seen = trainer.model.forward, []

    def limited(batch, mask=None):
        seen.append(len(batch))
        if len(batch) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return forward(batch, mask)

    trainer.model.forward = limited
    return seen


def batch_of(trainer, size: int) -> Batch:
    targets = [{"labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5)}] * size
    mask = torch.zeros(size, 48, 64, dtype=torch.bool)
    return Batch(torch.randn(size, 3, 48, 64), mask, targets)


def test_out_of_memory_says_what_fits(tmp_path):
    trainer = small_trainer(tmp_path)
    before = [p.clone() for p in trainer.model.parameters()]
    seen = fails_beyond(trainer, 3)
    with pytest.raises(ValueError) as error:
        trainer.train_on([batch_of(trainer, 8)])
    assert str(error.value) == (
        "step 1: out of memory on cpu with a batch size of 8 at 48 x 64 pixels; 2 fits: "
        "--batch-size 2, with --accumulate 4 for as many images per step, or --checkpointing"
    )
    assert seen == [8, 4, 2]
    assert all(p.grad is None for p in trainer.model.parameters())
    for then, now in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(then, now)


def test_out_of_memory_keeps_the_number_of_images_of_accumulated_batches(tmp_path):
    trainer = small_trainer(tmp_path, accumulate=3)
    fails_beyond(trainer, 2)
    with pytest.raises(ValueError, match="2 fits: --batch-size 2, with --accumulate 6 for"):
        trainer.train_on([batch_of(trainer, 4)] * 3)


def test_out_of_memory_with_one_image(tmp_path):
    trainer = small_trainer(tmp_path)
    fails_beyond(trainer, 0)
    with pytest.raises(ValueError, match="not even one image fits: use smaller images"):
        trainer.train_on([batch_of(trainer, 2)])


def test_out_of_memory_in_an_evaluation(tmp_path):
    trainer = small_trainer(tmp_path, ema=0.0)
    fails_beyond(trainer, 3)
    with pytest.raises(ValueError) as error:
        trainer._evaluate(2, None, ProgressBar(1, 0, quiet=True))
    assert str(error.value) == (
        "evaluation of epoch 2: out of memory on cpu with a batch size of 4; the epoch's training "
        "is saved, and resuming the run begins with this evaluation: free some memory first"
    )


def test_other_errors_are_not_taken_for_it(tmp_path):
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    trainer = small_trainer(tmp_path)
    trainer.model.forward = lambda *_: torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trainer.train_on([batch_of(trainer, 2)])


def test_when_a_cuda_graph_is_possible(monkeypatch):
    fixed = TrainConfig.create(image_size=(64, 64))
    monkeypatch.setattr(_C, "cuda_version", None)
    assert "without its CUDA kernels" in cuda_graph_obstacle(fixed, GPU, 1)
    monkeypatch.setattr(_C, "cuda_version", "13.0")
    assert cuda_graph_obstacle(fixed, GPU, 1) is None
    assert cuda_graph_obstacle(fixed, CPU, 1) == "it trains on the cpu"
    assert cuda_graph_obstacle(TrainConfig.create(data="shapes"), GPU, 1) is None
    photographs = TrainConfig.create(data="voc:folder")
    assert "give --image-size" in cuda_graph_obstacle(photographs, GPU, 1)
    published = TrainConfig.create(model="resnet18")
    assert "give --recipe small and --image-size" in cuda_graph_obstacle(published, GPU, 1)
    assert "several processes" in cuda_graph_obstacle(fixed, GPU, 2)
    accumulated = TrainConfig.create(image_size=(64, 64), accumulate=2)
    assert "--accumulate" in cuda_graph_obstacle(accumulated, GPU, 1)
    checkpointing = TrainConfig.create(image_size=(64, 64), checkpointing=True)
    assert "--checkpointing" in cuda_graph_obstacle(checkpointing, GPU, 1)


def test_benchmark_command(capsys):
    options = ["--batch-size", "2", "--image-size", "48", "48", "--steps", "2", "--device", "cpu"]
    assert main(["benchmark", *options]) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"^(\w+) +([\d.]+) +([\d.]+)%  (█+)$", said, re.MULTILINE)
    names = [name for name, *_ in rows]
    assert names == ["data", "forward", "match", "loss", "backward", "optimizer"]
    assert sum(float(share) for _, _, share, _ in rows) == pytest.approx(100, abs=0.5)
    longest = max(rows, key=lambda row: float(row[1]))
    assert len(longest[3]) == 40
    assert re.search(r"data \d+% \| step \d+%: the (step|loader) is the bottleneck", said)


def test_benchmark_of_a_cuda_graph(tmp_path):
    """It has one phase beside the data: a clock called inside would be captured with it."""
    trainer = small_trainer(tmp_path)
    matcher = trainer.criterion.matcher
    steps = []

    def graphed(batch, mark):
        assert "match_packed" not in vars(matcher)  # no clock around it
        steps.append(trainer.train_step([batch]))
        mark("graph")
        return steps[-1]

    trainer.graphed = graphed
    seconds, whole, _ = measure(trainer, steps=2)
    assert list(seconds) == ["data", "graph"]
    assert 0 < seconds["graph"] < whole
    assert len(steps) == WARM_UP + 2 + 2  # the captured one is not measured


def test_benchmark_command_needs_steps(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--steps", "0"])
    assert "--steps: '0', expected a whole number >= 1" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--no-draft"], ["--cache"], ["--cache-gb", "0.5"]])
def test_benchmark_command_loads_as_training_does(voc_folder, monkeypatch, options):
    cached = any(option.startswith("--cache") for option in options)

    def training(config, data, *_, **__):
        expected, _ = open_data(config)
        assert data.scaled_decoding == expected.scaled_decoding == ("--no-draft" not in options)
        assert (data.cache is None) == (expected.cache is None) == (not cached)
        steps, wanted = ([type(s) for s in d.transforms.steps] for d in (data, expected))
        assert steps == wanted  # normalised on the device, not here
        raise ValueError("so far so good")

    monkeypatch.setattr("detr_fast.cli.benchmark.Trainer", training)
    with pytest.raises(ValueError, match="so far so good"):
        main(["benchmark", "--data", f"voc:{voc_folder}", "--debug", *options])
