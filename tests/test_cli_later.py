"""What becomes of a run later: its data moves, files are lost or damaged, it is stopped again."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.cli import main, predict
from detr_fast.cli.pictures import save_picture
from detr_fast.training import Trainer
from detr_fast.training.logs import RunLog, read_metrics

pytest.importorskip("pycocotools")
FAST = ("--batch-size", "4", "--num-queries", "6", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def trained(voc_folder, tmp_path_factory) -> Path:
    """A run of one epoch on the small VOC folder."""
    runs = tmp_path_factory.mktemp("runs")
    options = ["--data", f"voc:{voc_folder}", "--epochs", "1", "--runs", str(runs), *FAST]
    assert main(["train", *options, "--name", "mine"]) == 0
    return runs / "mine"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(trained, tmp_path / "runs" / "mine")


def error_of(capsys, *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--continue",)])
def test_a_run_with_its_best_weights_alone_is_not_overwritten(
    run, voc_folder, tmp_path, capsys, more
):
    (run / "last.pt").unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    options = ["--data", f"voc:{voc_folder}", "--epochs", "2", "--runs", tmp_path / "runs"]
    error = error_of(capsys, "train", *options, *FAST, "--name", "mine", *more)
    assert f"{run} has a best.pt but no last.pt to resume from" in error
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_data_that_has_moved(run, voc_folder, tmp_path, capsys):
    moved = f"voc:{shutil.copytree(voc_folder, tmp_path / 'moved')}"
    for name in ("last.pt", "best.pt"):
        state = torch.load(run / name, weights_only=True)
        state["config"]["data"] = f"voc:{tmp_path / 'gone'}"
        (run / name).unlink()
        torch.save(state, run / name)
    resume = ["train", "--resume", run, "--epochs", "2", "--device", "cpu"]
    hint = "that is the path the run was started with"
    for command in (resume, ["eval", run], ["visualize", "queries", run], ["report", run]):
        error = error_of(capsys, *command)
        assert str(tmp_path / "gone") in error and hint in error
    error = error_of(capsys, "eval", run, "--data", f"voc:{tmp_path / 'nowhere'}")
    assert str(tmp_path / "nowhere") in error and hint not in error
    gone = f"voc:{tmp_path / 'also gone'}"
    assert error_of(capsys, *resume, "--val-data", gone).endswith("give --data\n")
    error = error_of(capsys, *resume, "--data", moved, "--val-data", gone)
    assert "also gone" in error and hint not in error
    assert main([*map(str, resume), "--data", moved]) == 0
    assert torch.load(run / "last.pt", weights_only=True)["config"]["data"] == moved
    assert main(["report", str(run), "--data", moved, "--device", "cpu"]) == 0
    assert main(["eval", str(run), "--data", moved, "--device", "cpu"]) == 0


def test_curves_of_what_is_no_run(run, capsys):
    for path in (run / "best.pt", run / "nowhere"):
        assert f"{path}: no such folder, expected a run's" in error_of(
            capsys, "visualize", "curves", path
        )


def test_a_coco_folder_that_is_not_there_is_named(run, tmp_path, capsys):
    gone = tmp_path / "gone"
    for more in ((), ("--split", "train")):
        error = error_of(capsys, "eval", run, "--data", f"coco:{gone}", *more, "--device", "cpu")
        assert f"{gone}" in error and "names one split" not in error


def test_a_file_that_may_not_be_read_is_not_called_damaged(run, capsys, monkeypatch):
    def load(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torch, "load", load)
    error = error_of(capsys, "eval", run, "--device", "cpu")
    assert f"{run / 'best.pt'} cannot be read: Permission denied" in error


def test_ctrl_c_twice_says_how_to_go_on(run, capsys, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", interrupted)
    assert main(["train", "--resume", str(run), "--epochs", "2", "--device", "cpu"]) == 130
    expected = f"detr-fast: interrupted; resume with: detr-fast train --resume {run}\n"
    assert capsys.readouterr().err == expected


def test_figures_of_another_step_are_not_said_to_be_those_of_the_pictures(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["step"] -= 1
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["report", str(run), "--device", "cpu"]) == 0
    page = (run / "report.html").read_text()
    assert "the one after step 3, which was not evaluated; the figures are the last ones" in page


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: row.pop("AP50"),
        lambda row: row.pop("train_seconds"),
        lambda row: row.update(AP="0.5"),
        lambda row: row.update(per_class=None),
    ],
    ids=["no AP50", "no train_seconds", "text", "no classes"],
)
def test_a_damaged_row_is_left_out_and_said(run, damage):
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    (val,) = [row for row in rows if row["kind"] == "val"]
    damage(val)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match=f"1 line is no row of .* line {rows.index(val) + 1}$"):
        assert len(read_metrics(path)) == len(rows) - 1
    with pytest.warns(UserWarning, match="1 line is no row of metrics"):
        assert main(["visualize", "curves", str(run)]) == 0


def test_blank_and_cut_lines_are_nobodys_damage(run):
    path = run / "metrics.jsonl"
    rows, text = read_metrics(path), path.read_text()
    last = text.splitlines()[-1]
    cut = last[: last.index("}") + 1]  # after the figures of the classes
    path.write_text(f"\n{text}\n{cut}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_metrics(path) == rows


def test_resuming_keeps_lines_that_are_not_its_rows(run):
    path = run / "metrics.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], "a remark", *rows[1:], rows[-1][:40]]))
    RunLog(run, step=10_000).close()
    assert path.read_text().splitlines() == [rows[0], "a remark", *rows[1:]]  # less the cut line
    with pytest.warns(UserWarning, match="1 line is no row of metrics and left out, .* line 2"):
        assert len(read_metrics(path)) == len(rows)


def test_data_without_a_box_is_refused(coco_files, tmp_path, capsys):
    images, file = coco_files
    truth = json.loads(file.read_text())
    (tmp_path / "empty.json").write_text(json.dumps(truth | {"annotations": []}))
    options = ["--data", f"coco:{images}:{tmp_path / 'empty.json'}", "--runs", tmp_path / "runs"]
    error = error_of(capsys, "train", *options, "--val-data", f"coco:{images}:{file}", *FAST)
    assert "the training data has no objects" in error


def test_dark_pictures_are_named_above_the_bar(run, tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((64, 64), 0xFFF, dtype=np.uint16)).save(tmp_path / name)
    command = [sys.executable, "-m", "detr_fast.cli", "predict", run, "a.png", "b.png"]
    done = subprocess.run(
        [*map(str, command), "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in ("a.png", "b.png"):
        assert f"detr-fast: warning: {name}: this 16-bit picture uses" in done.stderr
    assert "warn(" not in done.stderr


def test_what_takes_long_is_said(run, voc_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "MANY_CELLS", 63)  # 64 x 64 pixels have 8 x 8
    image = voc_folder / "JPEGImages" / "1.jpg"
    out = tmp_path / "out"
    assert main(["predict", str(run), str(image), "--out", str(out), "--device", "cpu"]) == 0
    assert f"note   {image} is large for this model" in capsys.readouterr().out


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "curves.png"
    save_picture(Image.new("RGB", (4, 4)), path)
    before = path.read_bytes()

    class Unfinished(Image.Image):
        def save(self, file, format):
            Path(file).write_bytes(before[:10])
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left.*curves\.png"):
        save_picture(Unfinished(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
