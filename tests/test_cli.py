"""The command line, end to end, as a user calls it; and what it says when something is wrong."""

import argparse
import functools
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from detr_fast.cli import COMMANDS, main
from detr_fast.cli.checkpoints import load_best_checkpoint
from detr_fast.cli.predict import find_images
from detr_fast.data import DetectionDataset, clean_message
from detr_fast.evaluation import detect_batch
from detr_fast.models import detr_tiny
from detr_fast.models.builders import build_detr
from detr_fast.visualize import draw_detections

pytest.importorskip("pycocotools")
FAST = ("--batch-size", "4", "--num-queries", "6", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def run(voc_folder, tmp_path_factory) -> Path:
    """A run of two epochs on the small VOC folder."""
    runs = tmp_path_factory.mktemp("runs")
    options = ["--data", f"voc:{voc_folder}", "--epochs", "2", "--runs", str(runs), *FAST]
    assert main(["train", *options, "--num-queries", "60", "--name", "first"]) == 0
    return runs / "first"


class TestTrain:
    def test_writes_everything(self, run):
        assert {path.name for path in run.iterdir()} == {
            *("last.pt", "best.pt", "config.json", "metrics.jsonl", "tensorboard"),
            *("curves.png", "predictions.png"),
        }
        written = json.loads((run / "config.json").read_text())
        assert written["config"]["num_queries"] == 60 and written["config"]["epochs"] == 2
        assert written["class_names"] == ["circle", "square", "triangle"]
        assert written["processes"] == 1 and written["versions"]["torch"] == torch.__version__
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {row["kind"] for row in rows} == {"train", "val"}
        (val, last) = [row for row in rows if row["kind"] == "val"]
        assert last["step"] == 6 and val["epoch"] == 1
        assert set(last["per_class"]) == {"circle", "square", "triangle"}
        for name in ("curves.png", "predictions.png"):
            assert min(Image.open(run / name).size) > 300
        assert list((run / "tensorboard").glob("events*"))

    def test_installed_command_prints_the_figures(self, voc_folder, tmp_path):
        command = Path(sys.executable).with_name("detr-fast")
        if not command.exists():
            pytest.skip(f"{command} is not installed: the package is used from its source")
        options = ["--data", f"voc:{voc_folder}", "--epochs", "1", *FAST]
        done = subprocess.run(
            [command, "train", *options], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(" @[ IoU=") == 12
        for name in ("circle", "square", "triangle"):
            assert f"\n {name}" in done.stdout
        assert (tmp_path / "runs" / f"{voc_folder.name}-tiny" / "last.pt").exists()

    def test_generated_shapes(self, tmp_path, monkeypatch):
        """The default data, cut short by Ctrl-C's signal; the checkpoint resumes."""
        import multiprocessing
        import signal

        from detr_fast.training import Trainer, load_checkpoint

        step = Trainer.train_on

        def interrupted(self, batches):
            if self.step == 2:
                signal.raise_signal(signal.SIGINT)
            return step(self, batches)

        monkeypatch.setattr(Trainer, "train_on", interrupted)
        assert main(["train", "--epochs", "1", "--runs", str(tmp_path), "--workers", "1"]) == 130
        # The loader ended its worker. One that Python kills leaves a folder in /tmp behind.
        assert not multiprocessing.active_children()
        assert load_checkpoint(tmp_path / "shapes-tiny")["step"] == 3

    def test_interrupt_says_how_to_go_on(self, run, capsys, monkeypatch, tmp_path):
        from detr_fast.training import Trainer
        from detr_fast.training.engine import Interrupted

        def interrupted(self):
            raise Interrupted("stopped at step 3 of 6")

        copy = shutil.copytree(run, tmp_path / "copy")
        monkeypatch.setattr(Trainer, "run", interrupted)
        assert main(["train", "--resume", str(copy)]) == 130
        assert f"detr-fast train --resume {copy}" in capsys.readouterr().err

    def test_coco_files(self, coco_files, tmp_path):
        images, truth = coco_files
        spec = f"coco:{images}:{truth}"
        options = ["--data", spec, "--val-data", spec, "--epochs", "1", "--name", "coco"]
        assert main(["train", *options, "--runs", str(tmp_path), *FAST]) == 0
        state = torch.load(tmp_path / "coco" / "last.pt", weights_only=True)
        assert state["category_ids"] == [3, 17, 90]

    def test_resnet_with_the_published_recipe(self, coco_files, tmp_path, monkeypatch):
        """The paper's model and transforms, shrunk to run here."""
        from detr_fast.data import transforms
        from detr_fast.training import recipes

        monkeypatch.setattr(transforms, "_SHORT_SIDES", (64, 96))
        monkeypatch.setattr(recipes, "detr_eval", functools.partial(transforms.detr_eval, 96))
        images, truth = coco_files
        spec = f"coco:{images}:{truth}"
        options = ["--model", "resnet18", "--backbone-weights", "none", "--recipe", "detr"]
        options += ["--data", spec, "--val-data", spec, "--epochs", "1", "--accumulate", "2"]
        options += ["--schedule", "cosine", "--ema", "0.9", "--amp", "bf16", "--eval-every", "5"]
        assert main(["train", *options, "--runs", str(tmp_path), *FAST]) == 0

    def test_name_of_the_folder(self, run, voc_folder, capsys):
        options = ["--data", f"voc:{voc_folder}", "--runs", str(run.parent), "--name", "first"]
        assert main(["train", *options]) == 2
        assert f"{run} exists" in capsys.readouterr().err

    def test_backbone_weights_are_read_once(self, coco_files, tmp_path):
        """A resumed run, an evaluation and a prediction do without the file it started from."""
        import torchvision

        weights = tmp_path / "resnet18.pth"
        torch.save(torchvision.models.resnet18().state_dict(), weights)
        images, truth = coco_files
        spec = f"coco:{images}:{truth}"
        options = ["--model", "resnet18", "--backbone-weights", str(weights), "--recipe", "small"]
        options += ["--data", spec, "--val-data", spec, "--epochs", "1", "--name", "fine"]
        assert main(["train", *options, "--runs", str(tmp_path), *FAST]) == 0
        weights.unlink()
        run = str(tmp_path / "fine")
        assert main(["train", "--resume", run, "--device", "cpu"]) == 0
        assert main(["eval", run, "--device", "cpu"]) == 0
        state = torch.load(tmp_path / "fine" / "last.pt", weights_only=True)
        assert not any("num_batches_tracked" in name for name in state["model"])

    def test_init_from_published_weights(self, coco_files, tmp_path, capsys, monkeypatch):
        """Nothing is downloaded; the run goes on, and is evaluated, without the file."""
        from detr_fast.models import detr_resnet18

        monkeypatch.setattr("torch.hub.load_state_dict_from_url", pytest.fail)
        weights = tmp_path / "detr.pth"
        trained = detr_resnet18().state_dict()
        torch.save({"model": trained}, weights)
        images, truth = coco_files
        spec = f"coco:{images}:{truth}"
        options = ["--model", "resnet18", "--init-from", str(weights), "--recipe", "small"]
        options += ["--data", spec, "--val-data", spec, "--epochs", "1", "--name", "fine"]
        assert main(["train", *options, "--runs", str(tmp_path), *FAST]) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("init ")]
        assert said == [
            f"init   {weights}: loaded {len(trained) - 3} tensors; left as initialised: "
            "class_embed.weight, class_embed.bias, query_embed.weight"
        ]
        weights.unlink()
        run = tmp_path / "fine"
        state = torch.load(run / "last.pt", weights_only=True)
        assert state["config"]["init_from"] == str(weights) and state["step"] == 2
        stem = "backbone.0.body.conv1.weight"  # frozen
        assert torch.equal(state["model"][stem], trained[stem])
        assert main(["train", "--resume", str(run), "--epochs", "2", "--device", "cpu"]) == 0
        assert "init " not in capsys.readouterr().out
        assert main(["eval", str(run), "--device", "cpu"]) == 0

    def test_more_epochs_than_were_planned(self, run, tmp_path, capsys):
        """The rates are those of a run of that length from the start."""
        copy = shutil.copytree(run, tmp_path / "copy")
        assert main(["train", "--resume", str(copy), "--epochs", "4", "--device", "cpu"]) == 0
        said = capsys.readouterr().out
        note = "note   4 epochs in all instead of 2: the learning rate follows the step schedule of"
        assert said.count(note) == 1 and "resumed at step 6" in said
        state = torch.load(copy / "last.pt", weights_only=True)
        assert state["step"] == 12 and state["config"]["epochs"] == 4
        rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows if row["kind"] == "val"] == [1, 2, 3, 4]
        assert main(["train", "--resume", str(copy), "--epochs", "3"]) == 2
        assert f"--epochs is 3, but {copy} has done 4: give the" in capsys.readouterr().err
        # The same command once more: there is nothing left to train, nor to refuse.
        assert main(["train", "--resume", str(copy), "--epochs", "4", "--device", "cpu"]) == 0
        assert torch.load(copy / "last.pt", weights_only=True)["step"] == 12

    def test_memory_for_a_cache_that_the_run_has_or_has_not(self, run, tmp_path, capsys):
        copy = shutil.copytree(run, tmp_path / "copy")
        command = ["train", "--resume", str(copy), "--cache-gb", "0.5", "--device", "cpu"]
        assert main(command) == 2
        assert f"{copy} was started without --cache: leave out" in capsys.readouterr().err
        state = torch.load(copy / "last.pt", weights_only=True)
        state["config"] |= {"cache": True, "cache_gb": 2.0}
        (copy / "last.pt").unlink()
        torch.save(state, copy / "last.pt")
        assert main(command) == 0

    def test_an_end_at_an_epoch_that_is_still_to_be_evaluated(self, run, tmp_path, capsys):
        copy = shutil.copytree(run, tmp_path / "copy")
        state = torch.load(copy / "last.pt", weights_only=True)
        state["config"]["epochs"] = 5
        command = ["train", "--resume", str(copy), "--epochs", "2", "--device", "cpu"]
        for due in (False, True):
            (copy / "last.pt").unlink()
            torch.save(state | {"evaluation_due": due}, copy / "last.pt")
            assert main(command) == (0 if due else 2)
        said = capsys.readouterr()
        assert "--epochs is 2" in said.err and "note   2 epochs in all instead of 5" in said.out
        rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows if row["kind"] == "val"] == [1, 2]
        last = torch.load(copy / "last.pt", weights_only=True)
        assert (last["step"], last["evaluation_due"], last["config"]["epochs"]) == (6, False, 2)

    def test_continue_compares_the_options_given(self, run, voc_folder, tmp_path, capsys):
        """A run of an earlier version has that one's defaults, and goes on with them."""
        copy = shutil.copytree(run, tmp_path / "copy")
        state = torch.load(copy / "last.pt", weights_only=True)
        state["config"]["lr_backbone"] = 1e-5
        (copy / "last.pt").unlink()
        torch.save(state, copy / "last.pt")
        options = ["--data", f"voc:{voc_folder}", "--epochs", "2", *FAST, "--num-queries", "60"]
        again = ["train", *options, "--continue", "--runs", str(tmp_path), "--name", "copy"]
        assert main(again) == 0
        assert "resumed at step 6" in capsys.readouterr().out
        for other, said in (
            (["--lr-backbone", "0.1"], "lr_backbone 1e-05, not 0.1"),
            (["--lr", "0.0004", "--epochs", "3"], "epochs 2, not 3"),
            (["--cache-gb", "1"], "cache False, not True"),
        ):
            assert main([*again, *other]) == 2
            line = f"{copy} was started with other options: {said}\n"
            assert capsys.readouterr().err.endswith(line)

    def test_more_objects_than_queries_is_said(self, voc_folder, tmp_path, capsys):
        options = ["--data", f"voc:{voc_folder}", "--epochs", "1", "--runs", str(tmp_path), *FAST]
        assert main(["train", *options, "--num-queries", "2"]) == 0
        assert "than there are queries (2)" in capsys.readouterr().out
        assert main(["train", *options, "--num-queries", "9"]) == 0
        assert "than there are queries" not in capsys.readouterr().out

    def test_validation_data_without_objects(self, coco_files, tmp_path, capsys):
        """Nothing to measure: said, and not an AP of -1; the run's name is not a remote host's."""
        images, file = coco_files
        empty = tmp_path / "empty.json"
        empty.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
        options = ["--data", f"coco:{images}:{file}", "--val-data", f"coco:{images}:{empty}"]
        assert main(["train", *options, "--epochs", "1", "--runs", str(tmp_path), *FAST]) == 0
        out, err = capsys.readouterr()
        assert "note   the validation data has no objects: there is no AP" in out
        assert "AP -  AP50 -  AP75 -  (trained" in out + err
        assert (tmp_path / f"{file.stem}-tiny" / "best.pt").exists()


class TestEval:
    def test_same_figures_as_in_training(self, run, capsys, tmp_path):
        assert (
            main(["eval", str(run), "--device", "cpu", "--out", str(tmp_path / "eval.json")]) == 0
        )
        assert capsys.readouterr().out.count(" @[ IoU=") == 12
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        figures = json.loads((tmp_path / "eval.json").read_text())
        best = max((row for row in rows if row["kind"] == "val"), key=lambda row: row["AP"])
        assert figures["AP"] == best["AP"] and figures["per_class"] == best["per_class"]
        assert figures["AR_100"] == best["AR_100"] > 0  # something is found at all

    def test_detections_that_pycocotools_reads(self, run, coco_files, tmp_path):
        """The figures of the file are those that were printed."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        images, truth = coco_files
        out, found = tmp_path / "new" / "eval.json", tmp_path / "new" / "detections.json"
        command = ["eval", str(run), "--data", f"coco:{images}:{truth}", "--device", "cpu"]
        assert main([*command, "--out", str(out), "--detections", str(found)]) == 0
        coco = COCO(truth)
        assert len(json.loads(found.read_text())) == 60 * len(coco.imgs)
        evaluation = COCOeval(coco, coco.loadRes(str(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures = json.loads(out.read_text())
        assert figures["AR_100"] == pytest.approx(evaluation.stats[8]) and figures["AR_100"]
        assert figures["AP"] == pytest.approx(evaluation.stats[0])

    def test_no_file_of_detections_after_an_error(self, run, tmp_path):
        copy, found = shutil.copytree(run, tmp_path / "copy"), tmp_path / "found.json"
        state = torch.load(copy / "best.pt", weights_only=True)
        (state["ema"] or state["model"])["class_embed.bias"][0] = torch.nan
        (copy / "best.pt").unlink()
        torch.save(state, copy / "best.pt")
        assert main(["eval", str(copy), "--detections", str(found), "--device", "cpu"]) == 2
        assert not found.exists()

    def test_one_file_for_both(self, run, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        both = ["--out", "a.json", "--detections", str(tmp_path / "a.json")]
        assert main(["eval", str(run), *both, "--device", "cpu"]) == 2
        assert "--out and --detections are both a.json" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["--out", "--detections"])
    def test_a_folder_as_file(self, run, tmp_path, capsys, option):
        assert main(["eval", str(run), option, str(tmp_path)]) == 2
        assert f"{option} is {tmp_path}, a folder, expected a file" in capsys.readouterr().err

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc, where no file can be made")
    @pytest.mark.parametrize("option", ["--out", "--detections"])
    def test_a_file_that_cannot_be_written(self, run, capsys, option):
        """Said before the model is even loaded."""
        assert main(["eval", str(run), option, "/proc/figures.json"]) == 2
        out, err = capsys.readouterr()
        assert err.endswith(": '/proc/figures.json'\n") and not out

    def test_a_runs_best_checkpoint(self, run, voc_folder, tmp_path, capsys, monkeypatch):
        """Each command says which file it takes, the best one, and only resuming takes the last."""
        copy = shutil.copytree(run, tmp_path / "copy")
        state = torch.load(copy / "last.pt", weights_only=True)
        for name, step in (("best.pt", 3), ("last.pt", 6)):
            (copy / name).unlink()
            torch.save(state | {"step": step}, copy / name)
        monkeypatch.chdir(tmp_path)
        image = str(voc_folder / "JPEGImages" / "1.jpg")
        for command in (
            ["eval", "copy"],
            ["predict", "copy", image],
            ["visualize", "attention", "copy", image, "--threshold", "0"],
            ["visualize", "queries", "copy"],
            ["report", "copy"],
        ):
            for said in ("model  copy/best.pt, epoch 1 of 2", "model  copy/last.pt, epoch 2 of 2"):
                if "last.pt" in said:
                    (copy / "best.pt").rename(copy / "hidden")
                assert main([*command, "--device", "cpu"]) == 0
                assert said in capsys.readouterr().out
            (copy / "hidden").rename(copy / "best.pt")
        assert main(["eval", "copy/last.pt", "--device", "cpu"]) == 0
        assert "model  copy/last.pt, epoch 2 of 2" in capsys.readouterr().out
        assert main(["train", "--resume", "copy", "--device", "cpu"]) == 0
        assert "resumed at step 6" in capsys.readouterr().out

    def test_other_data_and_split(self, run, voc_folder, coco_files, capsys):
        spec = f"voc:{voc_folder}"
        assert main(["eval", str(run), "--data", spec, "--split", "train", "--device", "cpu"]) == 0
        assert "12 images" in capsys.readouterr().out
        images, truth = coco_files
        assert main(["eval", str(run), "--data", f"coco:{images}:{truth}", "--device", "cpu"]) == 0
        assert "1 crowd region dropped" in capsys.readouterr().out

    def test_how_boxes_are_read_is_that_of_the_data_given(
        self, run, voc_folder, coco_files, tmp_path, capsys
    ):
        """A run on COCO files, looked at on a VOC folder, and a run on that the other way round."""
        coco = "coco:{}:{}".format(*coco_files)
        options = ["--data", coco, "--val-data", coco, "--epochs", "1", "--name", "coco"]
        assert main(["train", *options, "--runs", str(tmp_path), *FAST]) == 0
        folder = _copy_voc(voc_folder, tmp_path)
        file = folder / "Annotations" / "13.xml"
        before, _, rest = file.read_text().partition("<xmin>")
        file.write_text(
            f"{before}<xmin>-1{rest[rest.index('<') :]}"
        )  # by two pixels, counted from 1
        voc = ["--data", f"voc:{folder}", "--device", "cpu"]
        origin = ["--voc-origin", "1", "--boxes", "clip"]
        on_coco, out = str(tmp_path / "coco"), ["--out", str(tmp_path)]
        capsys.readouterr()
        assert main(["eval", on_coco, *voc, *origin]) == 0
        assert "1 box clipped" in capsys.readouterr().out
        assert main(["visualize", "matching", on_coco, *voc, *origin, *out]) == 0
        for command in (["eval", str(run)], ["visualize", "queries", str(run), *out]):
            assert main([*command, "--data", coco, "--voc-origin", "1", "--device", "cpu"]) == 2
            said = capsys.readouterr().err
            assert f"voc_origin is 1, but {coco} is not a Pascal VOC folder" in said


class TestPredict:
    def test_pictures_and_json(self, run, voc_folder, tmp_path):
        images = voc_folder / "JPEGImages"
        out = tmp_path / "out"
        command = ["predict", str(run), str(images), str(images / "0.jpg"), "--device", "cpu"]
        assert main([*command, "--threshold", "0", "--out", str(out)]) == 0
        results = json.loads((out / "detections.json").read_text())
        assert len(results) == 19
        names = {result["picture"] for result in results}
        assert len(names) == 19 and {"0.jpg", "0-2.jpg"} < names  # of the same kind as the images
        for result in results:
            assert Image.open(out / result["picture"]).size == (320, 320)  # enlarged to be read
            assert (result["width"], result["height"]) == (64, 64)
            scores = [detection["score"] for detection in result["detections"]]
            assert len(scores) == 60 and scores == sorted(scores, reverse=True)
            for detection in result["detections"]:
                assert detection["category"] in ("circle", "square", "triangle")
                x, y, width, height = detection["bbox"]
                assert width > 0 and height > 0 and -64 < x < 64 and -64 < y < 64

    def test_what_is_found_is_what_is_written(self, run, tmp_path, monkeypatch):
        """Boxes are cut to the image, and x, y, width, height; the surest comes first."""
        Image.new("RGB", (64, 40)).save(tmp_path / "a.png")
        asked, drawn = [], []

        def detect(model, images, mask, size, amp, threshold):
            asked.append((size.tolist(), threshold))
            boxes = torch.tensor([[-5.0, 10, 30, 70], [5, 6, 20, 30]])
            labels, scores = torch.tensor([2, 0]), torch.tensor([0.5, 0.75])
            return [{"boxes": boxes, "labels": labels, "scores": scores}]

        def draw(picture, boxes, *_):
            drawn.append(boxes.tolist())
            return picture

        monkeypatch.setattr("detr_fast.detector.detect_batch", detect)
        monkeypatch.setattr("detr_fast.cli.predict.draw_detections", draw)
        command = ["predict", str(run), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
        assert main([*command, "--threshold", "0.25", "--device", "cpu"]) == 0
        assert asked == [([[40, 64]], 0.25)]
        assert drawn == [[[25, 30, 100, 150], [0, 50, 150, 200]]]  # in a picture 5 times as large
        (result,) = json.loads((tmp_path / "out" / "detections.json").read_text())
        assert (result["height"], result["width"]) == (40, 64)
        assert result["detections"] == [
            {"category": "circle", "category_id": 1, "score": 0.75, "bbox": [5, 6, 15, 24]},
            {"category": "triangle", "category_id": 3, "score": 0.5, "bbox": [0, 10, 30, 30]},
        ]

    def test_nothing_is_ever_overwritten(self, run, voc_folder, tmp_path, capsys, monkeypatch):
        pictures = shutil.copytree(voc_folder / "JPEGImages", tmp_path / "pictures")
        before = {path.name: path.read_bytes() for path in pictures.iterdir()}
        command = ["predict", str(run), str(pictures), "--device", "cpu"]
        assert main([*command, "--out", str(pictures)]) == 2
        assert "choose another one" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before
        monkeypatch.chdir(tmp_path)
        assert main(command) == main(command) == 0
        names = [
            {p.name for p in (tmp_path / n).iterdir()} for n in ("predictions", "predictions-2")
        ]
        assert names[0] == names[1] and "detections.json" in names[0]

    def test_hidden_files_are_none_of_a_folders_images(self, tmp_path):
        for name in ("a.png", ".hidden.png", "._a.png"):
            (tmp_path / name).touch()
        assert find_images([tmp_path]) == [tmp_path / "a.png"]
        assert find_images([tmp_path / ".hidden.png"]) == [tmp_path / ".hidden.png"]

    def test_an_unreadable_image_is_named(self, run, voc_folder, tmp_path, capsys):
        (tmp_path / "bad.jpg").write_bytes(b"not a jpeg")
        good = voc_folder / "JPEGImages" / "1.jpg"
        out = tmp_path / "out"
        command = ["predict", str(run), str(tmp_path / "bad.jpg"), str(good), "--out", str(out)]
        assert main([*command, "--device", "cpu"]) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len([line for line in errors if "bad.jpg" in line]) == 1
        results = json.loads((out / "detections.json").read_text())
        assert [Path(result["file"]).name for result in results] == ["1.jpg"]


def _copy_voc(voc_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(voc_folder, tmp_path / "voc")


class TestErrors:
    """One line on stderr that names the file and the entry, and exit status 2."""

    def fails(self, capsys, *arguments: str) -> str:
        assert main(list(arguments)) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("detr-fast: error: ")
        return lines[0]

    def train(self, capsys, tmp_path, data: str, *more: str) -> str:
        options = ["--data", data, "--epochs", "1", "--runs", str(tmp_path / "runs"), *FAST, *more]
        return self.fails(capsys, "train", *options)

    def test_wrong_paths(self, capsys, tmp_path, run):
        nowhere = str(tmp_path / "nowhere")
        assert nowhere in self.train(capsys, tmp_path, f"voc:{nowhere}")
        assert nowhere in self.train(
            capsys, tmp_path, f"coco:{nowhere}:{nowhere}.json", "--val-data", "shapes"
        )
        assert nowhere in self.fails(capsys, "eval", nowhere)
        assert "a folder" in self.fails(capsys, "eval", nowhere, "--out", ".")
        assert "seed is 9" in self.fails(capsys, "train", "--seed", "9" * 30)
        assert nowhere in self.fails(capsys, "train", "--resume", nowhere)
        assert nowhere in self.fails(capsys, "predict", str(run), nowhere)
        error = self.train(
            capsys, tmp_path, "shapes", "--model", "resnet18", "--backbone-weights", nowhere
        )
        assert nowhere in error
        assert not (tmp_path / "runs" / "shapes-resnet18").exists()

    def test_unknown_form_of_data(self, capsys, tmp_path):
        assert "voc:PATH" in self.train(capsys, tmp_path, "yolo:somewhere")

    def test_one_split_for_training_and_validation(self, capsys, tmp_path, coco_files):
        images, truth = coco_files
        assert "--val-data" in self.train(capsys, tmp_path, f"coco:{images}:{truth}")

    def test_unknown_category(self, capsys, tmp_path, voc_folder, run):
        folder = _copy_voc(voc_folder, tmp_path)
        file = folder / "Annotations" / "14.xml"
        file.write_text(
            file.read_text()
            .replace("circle", "hexagon")
            .replace("square", "hexagon")
            .replace("triangle", "hexagon")
        )
        error = self.fails(capsys, "eval", str(run), "--data", f"voc:{folder}")
        assert "14.xml" in error and "hexagon" in error

    def test_box_outside_its_image(self, capsys, tmp_path, voc_folder):
        folder = _copy_voc(voc_folder, tmp_path)
        file = folder / "Annotations" / "3.xml"
        text = file.read_text()
        start = text.index("<xmax>") + len("<xmax>")
        file.write_text(text[:start] + "900" + text[text.index("</xmax>") :])
        error = self.train(capsys, tmp_path, f"voc:{folder}")
        assert "3.xml" in error and "900" in error
        assert "--boxes clip" in error  # and that is an option

    def test_box_outside_its_image_clipped(self, capsys, tmp_path, voc_folder):
        """In training, in the evaluation of that run, and where evaluation is told to."""
        folder = _copy_voc(voc_folder, tmp_path)
        for name, corner, value in (("3", "xmax", "900"), ("4", "xmin", "-1")):
            file = folder / "Annotations" / f"{name}.xml"
            before, _, rest = file.read_text().partition(f"<{corner}>")
            file.write_text(f"{before}<{corner}>{value}{rest[rest.index('<') :]}")
        data = ["--data", f"voc:{folder}"]
        options = ["--boxes", "clip", "--epochs", "1", "--runs", str(tmp_path / "runs"), *FAST]
        assert main(["train", *data, *options, "--name", "clip"]) == 0
        train, val = capsys.readouterr().out.partition("val  ")[::2]
        assert "1 box clipped" in train and "clipped" not in val
        again = ["eval", str(tmp_path / "runs" / "clip"), "--split", "train", "--device", "cpu"]
        assert main(again) == 0
        assert "1 box clipped" in capsys.readouterr().out
        assert main([*again, "--voc-origin", "1"]) == 0  # what overhung by a pixel does by two
        assert "2 boxes clipped" in capsys.readouterr().out
        assert "900" in self.fails(capsys, *again, "--boxes", "error")

    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_unreadable_image(self, capsys, tmp_path, voc_folder, workers):
        folder = _copy_voc(voc_folder, tmp_path)
        image = folder / "JPEGImages" / "5.jpg"
        image.write_bytes(image.read_bytes()[:300])
        error = self.train(capsys, tmp_path, f"voc:{folder}", "--workers", workers)
        assert "5.jpg" in error and "Traceback" not in error

    @pytest.mark.skipif(sys.platform != "linux", reason="workers do not inherit the patch")
    @pytest.mark.parametrize("command", ["eval", "train"])
    def test_killed_worker(self, capsys, tmp_path, monkeypatch, run, voc_folder, command):
        read = DetectionDataset.read

        def killed(dataset, index, **options):
            if get_worker_info() is not None and index == 1:
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
            return read(dataset, index, **options)

        monkeypatch.setattr(DetectionDataset, "read", killed)
        if command == "eval":
            error = self.fails(
                capsys, "eval", str(run), "--data", f"voc:{voc_folder}", "--workers", "1"
            )
        else:
            error = self.train(capsys, tmp_path, f"voc:{voc_folder}", "--workers", "1")
        assert "a data worker died" in error and "fewer --workers" in error
        assert re.search(r"DataLoader worker (\(pid|closed its connection)", error)

    def test_a_run_may_be_a_link(self, run, tmp_path, capsys):
        (tmp_path / "disk").mkdir()
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "mine").symlink_to(tmp_path / "disk")
        options = ["--runs", str(tmp_path / "runs"), "--name", "mine", "--epochs", "0"]
        assert "epochs is 0" in self.fails(capsys, "train", *options)
        shutil.copytree(run, tmp_path / "disk", dirs_exist_ok=True)
        assert "exists: choose another" in self.fails(capsys, "train", *options[:4])

    @pytest.mark.parametrize("name", ["", ".", "..", "a/../..", "/tmp/elsewhere"])
    def test_a_name_that_is_no_folder(self, capsys, tmp_path, name):
        error = self.train(capsys, tmp_path, "shapes", "--name", name)
        assert f"--name is {name!r}" in error and not list(tmp_path.iterdir())

    def test_label_outside_the_classes(self):
        from detr_fast.losses import SetCriterion

        outputs = {"pred_logits": torch.zeros(1, 5, 4), "pred_boxes": torch.full((1, 5, 4), 0.5)}
        targets = [{"labels": torch.tensor([0, 3]), "boxes": torch.full((2, 4), 0.5)}]
        with pytest.raises(ValueError, match=r"targets\[0\]\['labels'\]\[1\] is 3"):
            SetCriterion(3)(outputs, targets)

    def test_wrong_splits(self, capsys, tmp_path, run, voc_folder, coco_files):
        error = self.fails(capsys, "eval", str(run), "--split", "trianval")
        assert "trianval.txt" in error and "test, train, val" in error
        images, truth = coco_files
        options = ["--data", f"coco:{images}:{truth}", "--split", "test"]
        assert "names one split" in self.fails(capsys, "eval", str(run), *options)
        assert "unknown split" in self.train(capsys, tmp_path, "shapes", "--val-split", "vla")

    def test_wrong_devices(self, capsys, tmp_path, run):
        for device in ("foo", "cuda:99", "meta"):
            options = ["train", "--runs", str(tmp_path), "--device", device]
            assert device in self.fails(capsys, *options)
            assert device in self.fails(capsys, "eval", str(run), "--device", device)
        assert not list(tmp_path.iterdir())

    def test_resume_takes_the_end_of_a_run(self, capsys, run):
        error = self.fails(capsys, "train", "--resume", f"{run}/best.pt")
        assert "is not a run's last.pt: --resume the run's folder" in error

    def test_a_run_that_saved_nothing_gives_its_name_back(self, capsys, tmp_path, voc_folder):
        folder = _copy_voc(voc_folder, tmp_path)
        image = folder / "JPEGImages" / "5.jpg"
        whole = image.read_bytes()
        image.write_bytes(whole[:300])
        self.train(capsys, tmp_path, f"voc:{folder}", "--name", "mine")
        image.write_bytes(whole)
        options = ["--data", f"voc:{folder}", "--epochs", "1", "--runs", str(tmp_path / "runs")]
        assert main(["train", *options, *FAST, "--name", "mine"]) == 0

    def test_wrong_options(self, capsys, tmp_path, run):
        assert "lr is -1.0" in self.train(capsys, tmp_path, "shapes", "--lr", "-1")
        seldom = ["--resume", str(run), "--save-minutes", "-1"]  # no option of the run itself
        assert "save_minutes is -1.0, expected 0 or more" in self.fails(capsys, "train", *seldom)
        error = self.fails(capsys, "train", "--resume", str(run), "--init-from", str(run))
        assert error.endswith("leave out --init-from")
        assert "--lr, --name" in self.fails(
            capsys, "train", "--resume", str(run), "--epochs", "9", "--lr", "1", "--name", "x"
        )
        error = self.train(capsys, tmp_path, "shapes", "--init-from", str(tmp_path / "no.pth"))
        assert "no.pth: no such file" in error and not list((tmp_path / "runs").iterdir())
        with pytest.raises(SystemExit):
            main(["predict", str(run), "x.jpg", "--threshold", "2"])
        assert "--threshold: '2', expected a score in 0..1" in capsys.readouterr().err

    def test_a_file_that_is_no_checkpoint(self, capsys, tmp_path):
        (tmp_path / "notes.txt").write_text("hello")
        assert "notes.txt cannot be read" in self.fails(capsys, "eval", str(tmp_path / "notes.txt"))
        # To an unpickler this is a program, which takes something from an empty stack.
        (tmp_path / "users").write_text("root:x:0:0:root:/root:/bin/bash\n")
        assert "users cannot be read" in self.fails(capsys, "eval", str(tmp_path / "users"))

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            MemoryError(),
        ],
        ids=["GPU", "CPU", "Python"],
    )
    def test_out_of_memory_outside_of_training(self, capsys, run, monkeypatch, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("detr_fast.cli.evaluate.evaluate", fail)
        said = self.fails(capsys, "eval", str(run), "--device", "cpu")
        assert "out of memory: use fewer" in said and clean_message(error) in said

    def test_without_pycocotools(self, capsys, tmp_path, run, monkeypatch):
        """Training ends before its first step; what needs no figures works."""
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        monkeypatch.delitem(sys.modules, "pycocotools.cocoeval", raising=False)
        monkeypatch.setattr("detr_fast.training.Trainer.train_on", pytest.fail)
        out = tmp_path / "ablation"
        for command in (
            ["train", "--runs", str(tmp_path / "runs")],
            ["train", "--resume", str(run), "--epochs", "3"],
            ["ablate", "--out", str(out)],
            ["eval", str(run)],
        ):
            said = self.fails(capsys, *command, "--device", "cpu")
            assert "COCO figures need the package pycocotools (pip install pycocotools)" in said
        assert not any(path.exists() for path in (tmp_path / "runs", out))
        options = ["--out", str(tmp_path), "--device", "cpu"]
        assert main(["visualize", "queries", str(run), *options]) == 0

    def test_a_compiler_that_fails(self, capsys, tmp_path, monkeypatch):
        from torch._dynamo.exc import TorchDynamoException

        def fail(*_):
            raise TorchDynamoException("No working C++ compiler\n\nSet TORCHDYNAMO_VERBOSE=1")

        monkeypatch.setattr("detr_fast.training.Trainer.run", fail)
        said = self.train(capsys, tmp_path, "shapes", "--compile")
        assert "torch.compile failed: leave out --compile (TorchDynamoException: No work" in said

    def test_a_fault_of_the_program_is_shown_whole(self, run, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        monkeypatch.setattr("detr_fast.cli.evaluate.evaluate", fail)
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            main(["eval", str(run), "--device", "cpu"])

    def test_debug_shows_where(self, tmp_path):
        with pytest.raises(ValueError, match="nowhere"):
            main(["eval", str(tmp_path / "nowhere"), "--debug"])


def options_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options_of(command)
        else:
            yield action


def test_every_option_says_what_it_is():
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for command in COMMANDS:
        command.add_parser(subparsers)
    options = list(options_of(parser))
    assert len(options) > 100
    assert [option.option_strings or option.dest for option in options if not option.help] == []


def test_help_of_train_has_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--epochs EPOCHS default: 6; ResNets: 300 " in text
    assert "learning rate; default: 0.0004; ResNets: 0.0001 " in text
    tiny, paper = (inspect.signature(build).parameters for build in (detr_tiny, build_detr))
    for name, what in (
        ("query_mode", "a learned vector or an anchor box"),
        ("dropout", "of the transformer"),
    ):
        usual, published = (f"{build[name].default}".removesuffix(".0") for build in (tiny, paper))
        assert f"{what}; default: {usual}; ResNets: {published} " in text
    assert f"tiny's feature map; default: {tiny['stride'].default} " in text


def test_what_cannot_be_printed_is_replaced(voc_folder, tmp_path):
    """Bars of a benchmark, names of classes."""
    command = ["benchmark", "--data", f"voc:{voc_folder}", "--steps", "1", *FAST]
    done = subprocess.run(
        [sys.executable, "-m", "detr_fast.cli", *command, "--batch-size", "500"],
        cwd=tmp_path,  # not the checkout: its detr_fast may not be the installed one
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    step, speed = re.search(r"step +([\d.]+) +([\d.]+) images/s", done.stdout).groups()
    assert float(speed) == pytest.approx(12 / float(step) * 1e3, rel=0.01)  # all there are


def test_predictions_before_ctrl_c_are_written(run, voc_folder, tmp_path, monkeypatch):
    drawn = []

    def draw(*given, **options):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(draw_detections(*given, **options))
        return drawn[-1]

    monkeypatch.setattr("detr_fast.cli.predict.draw_detections", draw)
    images = voc_folder / "JPEGImages"
    (images / "folder.jpg").mkdir()  # no image
    out = tmp_path / "out"
    assert main(["predict", str(run), str(images), "--out", str(out), "--device", "cpu"]) == 130
    (images / "folder.jpg").rmdir()
    assert len(json.loads((out / "detections.json").read_text())) == 2


def test_an_image_that_is_too_large_for_memory_is_named_and_left_out(
    run, voc_folder, tmp_path, monkeypatch, capsys
):
    calls = []

    def detect(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB")
        return detect_batch(*given, **options)

    monkeypatch.setattr("detr_fast.detector.detect_batch", detect)
    images = sorted((voc_folder / "JPEGImages").iterdir())[:3]
    out = tmp_path / "out"
    command = ["predict", str(run), *map(str, images), "--out", str(out), "--device", "cpu"]
    assert main(command) == 2
    assert f"{images[1]}: too large for the memory of cpu" in capsys.readouterr().err
    found = [result["file"] for result in json.loads((out / "detections.json").read_text())]
    assert found == [str(images[0]), str(images[2])]


@pytest.mark.parametrize(("asked", "used"), [([], "bf16"), (["--amp", "none"], "none")])
@pytest.mark.parametrize("command", ["eval", "predict"])
def test_precision_is_that_of_training(
    run, voc_folder, tmp_path, monkeypatch, command, asked, used
):
    load = load_best_checkpoint

    def trained_in_bf16(path):
        checkpoint = load(path)
        checkpoint["config"]["amp"] = "bf16"
        return checkpoint

    module, used_by = {
        "eval": ("cli.evaluate", "cli.evaluate"),
        "predict": ("cli.predict", "detector"),
    }[command]
    monkeypatch.setattr(f"detr_fast.{module}.load_best_checkpoint", trained_in_bf16)
    precisions = []

    def amp_dtype(name, device):
        precisions.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"detr_fast.{used_by}.amp_dtype", amp_dtype)
    more = [str(voc_folder / "JPEGImages")] if command == "predict" else []
    assert main([command, str(run), *more, *asked, "--device", "cpu"]) == 130
    assert precisions == [used]


def test_help_and_version(capsys):
    for arguments in (["--help"], ["train", "--help"], ["eval", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    assert "detr-fast 0." in capsys.readouterr().out
