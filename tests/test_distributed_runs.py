"""Training in several processes: the curve of one, images without objects, a process that dies."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torchvision
from test_train_options import batch_of, fails_beyond
from training_cases import saved_steps

from detr_fast import processes
from detr_fast.data import Shapes, fixed_eval
from detr_fast.data.loader import EvalBatches, make_eval_loader
from detr_fast.evaluation import detect, merge_detections
from detr_fast.losses import SetCriterion
from detr_fast.models import detr_tiny
from detr_fast.training import TrainConfig, Trainer, load_checkpoint
from detr_fast.training.evaluation_losses import EvaluationLosses

pytest.importorskip("pycocotools")
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no distributed")


class SomeBoxes(Shapes):
    """Shapes with at most so many boxes per image, on all processes or on those after the first."""

    def __init__(self, most: int, elsewhere: int | None = None) -> None:
        super().__init__(16, image_size=64, seed=4, transforms=fixed_eval(None))
        self.most = elsewhere if elsewhere is not None and dist.get_rank() > 0 else most

    def _load(self, index: int):
        pixels, record = super()._load(index)
        boxes, labels = record.boxes[: self.most], record.labels[: self.most]
        return pixels, dataclasses.replace(record, boxes=boxes, labels=labels)


TINY = {"model": "tiny", "backbone_weights": None}


def train(*args, **options) -> Trainer:
    trainer = prepare(*args, **options)
    trainer.run()
    return trainer


def prepare(
    run: Path, weights: Path, most: int, elsewhere: int | None = None, **options
) -> Trainer:
    """Four steps without dropout: only the tiny model's batch norm is of a process alone."""
    config = TrainConfig.create(
        **{
            **{"model": "resnet18", "backbone_weights": str(weights), "recipe": "small"},
            **{"dropout": 0.0, "num_queries": 8, "amp": "none", "workers": 0, "log_every": 1},
            **{"epochs": 2, "batch_size": 8, "eval_every": 9, "lr": 1e-4},
        }
        | options
    )
    run.mkdir(exist_ok=True)
    images = SomeBoxes(most, elsewhere)
    return Trainer(config, images, SomeBoxes(1), run, torch.device("cpu"), quiet=True)


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


def start_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # a process that hangs is an error
    )


def _one_of_two(rank: int, folder: str) -> None:
    path = Path(folder)
    start_process(rank, path)
    weights = path / "weights.pt"
    for name, options in {
        "halves": {"most": 1, "batch_size": 4},
        "quarters": {"most": 1, "batch_size": 2, "accumulate": 2},
        "many": {"most": 9, "batch_size": 4},
        "unlabelled": {"most": 9, "elsewhere": 0, "batch_size": 4, **TINY},
        "all unlabelled": {"most": 0, "batch_size": 4, **TINY},
    }.items():
        trainer = train(path / name, weights, **options)
        torch.save(trainer.model.state_dict(), path / f"{name}-{rank}.pt")
    _save_together(rank, path)
    for name in VALIDATION:
        torch.save(validation_losses(name), path / f"validation-{name}-{rank}.pt")
    dist.destroy_process_group()


def _save_together(rank: int, path: Path) -> None:
    trainer = prepare(path / "saving", path, most=1, batch_size=2, **TINY)
    trainer.save_minutes = (30.0, 1e-9)[rank]
    saved = saved_steps(trainer)
    trainer.run()
    (path / f"saving-{rank}.json").write_text(json.dumps(saved))


# Images and batch size: three batches for two processes, or one.
VALIDATION = {"unequal": (5, 2), "none for one": (3, 3)}


def validation_losses(name: str) -> dict[str, float]:
    images, batch_size = VALIDATION[name]
    data = torch.utils.data.Subset(SomeBoxes(9), range(images))
    torch.manual_seed(0)
    model, losses = detr_tiny(3, num_queries=8), EvaluationLosses(SetCriterion(3))
    loader = make_eval_loader(data, batch_size, 0, processes.rank(), processes.world_size())
    detect(model, loader, torch.device("cpu"), observe=losses.add)
    return losses.finish()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "weights.pt")
    torch.multiprocessing.spawn(_one_of_two, (str(folder),), nprocs=2)
    return folder


class TestCurve:
    @pytest.mark.parametrize(
        "name, options",
        [("halves", {"batch_size": 8}), ("quarters", {"batch_size": 2, "accumulate": 4})],
    )
    def test_of_two_processes_is_that_of_one_with_the_double_batch(
        self, two_processes, name, options
    ):
        """With as many boxes in each image; the class loss is averaged by each process alone.

        One process with quarters as well, and on one thread: otherwise other kernels are taken,
        whose results differ by 1e-7, and where that moves a ReLU's input across zero, gradients by
        5e-5.
        """
        run = two_processes / f"alone-{name}"
        alone = prepare(run, two_processes / "weights.pt", most=1, **options)
        start = {key: value.clone() for key, value in alone.model.state_dict().items()}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            alone.run()
        finally:
            torch.set_num_threads(threads)
        expected, found = rows(run), rows(two_processes / name)
        assert len(expected) == len(found) == 4
        # AdamW divides rounding by itself, so that after two steps some weights differ, and
        # gradients.
        for one, two in list(zip(expected, found, strict=True))[:2]:
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        for one, two in zip(expected, found, strict=True):
            for key in ("loss", "loss_ce", "loss_bbox", "loss_giou", "class_error"):
                assert two[key] == pytest.approx(one[key], rel=1e-4), key
        assert abs(expected[-1]["loss"] / expected[0]["loss"] - 1) > 0.01  # it did learn
        # Not entry by entry: AdamW divides by the gradient's own size, so that where that is
        # rounding error and no more, a weight may go anywhere within its learning rate.
        model = alone.model.state_dict()
        apart = moved = 0.0
        for key, value in torch.load(two_processes / f"{name}-0.pt").items():
            apart += (value - model[key]).double().square().sum().item()
            moved += (value - start[key]).double().square().sum().item()
        print(f"{name}: {(apart / moved) ** 0.5:.1e} of the way apart")
        assert apart**0.5 < 0.01 * moved**0.5

    def test_box_losses_agree_whatever_the_numbers_of_boxes(self, two_processes):
        run = two_processes / "alone-many"
        train(run, two_processes / "weights.pt", most=9, epochs=1)
        first, second = rows(run)[0], rows(two_processes / "many")[0]
        for key in ("loss_bbox", "loss_giou", "cardinality_error"):
            assert second[key] == pytest.approx(first[key], rel=1e-5)

    @pytest.mark.parametrize("name", ["many", "unlabelled", "all unlabelled"])
    def test_processes_keep_one_model(self, two_processes, name):
        """Also where one, or each, has only images without objects: nobody waits for ever."""
        states = [torch.load(two_processes / f"{name}-{rank}.pt") for rank in (0, 1)]
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), key
        assert len(rows(two_processes / name)) == 4


def _out_of_memory_in_one_of_two(rank: int, folder: str) -> None:
    path = Path(folder)
    start_process(rank, path)
    trainer = prepare(path / "run", path, most=1, **TINY)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    seen = fails_beyond(trainer, (99, 3)[rank])
    with pytest.raises((ValueError, RuntimeError)) as error:
        trainer.train_on([batch_of(trainer, 8)])
    unchanged = all(map(torch.equal, before, trainer.model.parameters()))
    dist.destroy_process_group()
    (path / f"{rank}.json").write_text(json.dumps([seen, str(error.value), unchanged]))


def test_out_of_memory_in_one_process_is_no_step_of_the_others(tmp_path):
    """It tries no other batch size, whose gradients would be taken for those of its batch."""
    torch.multiprocessing.spawn(_out_of_memory_in_one_of_two, (str(tmp_path),), nprocs=2)
    whole, failed = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert failed == [
        [8],
        "step 1: out of memory on cpu with a batch size of 8 per process at 48 x 64 pixels; try "
        "--batch-size 4, with --accumulate 2 for as many images per step, or --checkpointing",
        True,
    ]
    assert whole[0] == [8] and "gloo" in whole[1] and whole[2]


def test_processes_save_together(two_processes):
    """Where one of them finds that it is time."""
    steps = [json.loads((two_processes / f"saving-{rank}.json").read_text()) for rank in (0, 1)]
    assert steps == [[1, 2, 3, 4, 5, 6, 7, 8, 8]] * 2  # the last one is evaluated


class TestEvaluation:
    @pytest.mark.parametrize("length", [1, 5, 16, 17])
    @pytest.mark.parametrize("world_size", [1, 2, 3, 8])
    def test_every_batch_of_one_process_is_in_one_of_several(self, length, world_size):
        whole = list(EvalBatches(length, 4, 0, 1))
        assert [index for batch in whole for index in batch] == list(range(length))
        parts = [list(EvalBatches(length, 4, rank, world_size)) for rank in range(world_size)]
        assert sorted(batch for part in parts for batch in part) == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_an_image_seen_twice_or_never_is_an_error(self):
        found = {"scores": torch.zeros(1)}
        assert list(merge_detections([{3: found}, {1: found}, {}], 2)) == [1, 3]
        with pytest.raises(RuntimeError, match="image 3 was evaluated by two processes"):
            merge_detections([{3: found}, {3: found, 4: found}], 2)
        with pytest.raises(RuntimeError, match="1 of 2 images were evaluated"):
            merge_detections([{3: found}, {}], 2)

    @pytest.mark.parametrize("name", VALIDATION)
    def test_losses_are_those_of_one_process(self, two_processes, name):
        """Also where the processes have different numbers of batches: nobody waits for ever."""
        first, second = (
            torch.load(two_processes / f"validation-{name}-{rank}.pt") for rank in (0, 1)
        )
        assert first == pytest.approx(validation_losses(name), rel=1e-6) and not second


class TestDeath:
    def start(self, data: Path, cwd: Path, processes: int, *options: str, epochs: int = 500):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
        split = options.index("--") if "--" in options else len(options)
        command += [*options[:split], "-m", "detr_fast.cli", "train", "--data", f"voc:{data}"]
        command += ["--epochs", str(epochs), "--batch-size", "2", "--num-queries", "6"]
        command += ["--device", "cpu", "--name", "run", "--eval-every", str(epochs)]
        return subprocess.Popen(
            [*command, *options[split + 1 :]],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill_one(self, process: subprocess.Popen, run: Path) -> None:
        """Kill the last process of a run, once there is a checkpoint."""
        deadline = time.monotonic() + 300
        while not (run / "last.pt").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "the run made no progress"
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
    def test_ends_the_run_with_one_line_and_a_checkpoint(self, voc_folder, tmp_path):
        process = self.start(voc_folder, tmp_path, 3)
        self.kill_one(process, tmp_path / "runs" / "run")
        _, error = process.communicate(timeout=300)
        assert process.returncode != 0
        ours = [line for line in error.splitlines() if line.startswith("detr-fast:")]
        assert len(ours) == 1, error
        assert "a process of this run is gone, after step " in ours[0]
        assert "resume with: detr-fast train --resume runs/run" in ours[0]
        step = load_checkpoint(tmp_path / "runs" / "run")["step"]
        assert step > 0 and step % 2 == 0  # of whole epochs
        assert "detr_fast/" not in error  # no traceback of ours

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
    def test_torchrun_restarts_it_where_it_was(self, voc_folder, tmp_path):
        process = self.start(
            voc_folder, tmp_path, 2, "--max-restarts", "1", "--", "--continue", epochs=12
        )
        run = tmp_path / "runs" / "run"
        self.kill_one(process, run)
        output, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert "resumed at step " in output
        assert load_checkpoint(run)["step"] == 36
        steps = [row["step"] for row in rows(run)]
        assert steps == sorted(set(steps)) and steps[-1] == 36

        other = self.start(voc_folder, tmp_path, 2, "--", "--continue", "--lr", "0.5", epochs=12)
        _, error = other.communicate(timeout=300)
        assert other.returncode != 0
        assert "runs/run was started with other options: lr 0.0004, not 0.5" in error
