"""``detr-fast visualize``, end to end, for both kinds of queries."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from detr_fast.cli import main

pytest.importorskip("pycocotools")


@pytest.fixture(scope="module", params=["anchor", "learned"])
def run(request, voc_folder, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    options = ["--data", f"voc:{voc_folder}", "--epochs", "1", "--runs", str(runs), "--name", "r"]
    options += ["--batch-size", "4", "--num-queries", "6", "--query-mode", request.param]
    assert main(["train", *options, "--device", "cpu", "--workers", "0"]) == 0
    return runs / "r"


def test_attention(run, voc_folder, tmp_path, capsys):
    image = sorted((voc_folder / "JPEGImages").iterdir())[0]
    options = ["visualize", "attention", str(run), str(image), "--out", str(tmp_path)]
    assert main([*options, "--threshold", "0", "--most", "2"]) == 0
    names = {f"{image.stem}-{kind}.png" for kind in ("decoder", "encoder")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert main([*options, "--threshold", "0", "--layer", "all"]) == 0


@pytest.mark.parametrize("run", ["learned"], indirect=True)
def test_options_of_attention(run, voc_folder, tmp_path, capsys):
    image = sorted((voc_folder / "JPEGImages").iterdir())[0]
    options = ["visualize", "attention", str(run), str(image), "--out", str(tmp_path)]
    options += ["--most", "2"]
    for extra in (
        ["--head", "each"],
        ["--head", "0", "--layer", "1"],
        ["--point", "10,20", "--point", "30,5.5"],
        ["--amp", "bf16"],
    ):
        assert main([*options, "--threshold", "0", *extra]) == 0
    capsys.readouterr()
    for extra, message in (
        (["--threshold", "0", "--layer", "7"], "decoder layer 7"),
        (["--threshold", "0", "--layer", "some"], "--layer is 'some'"),
        (["--threshold", "0", "--point", "100,3"], "outside the 64 x 64 image"),
    ):
        out = tmp_path / "none"
        assert main([*options, *extra, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err and not out.exists()
    for extra in (["--point", "5"], ["--most", "0"], ["--threshold", "nan"], ["--threshold", "2"]):
        with pytest.raises(SystemExit):
            main([*options, *extra])
        assert extra[1] in capsys.readouterr().err


def test_without_a_detection_there_is_the_encoders_picture(run, voc_folder, tmp_path, capsys):
    image = sorted((voc_folder / "JPEGImages").iterdir())[0]
    options = ["attention", str(run), str(image), "--out", str(tmp_path), "--threshold", "1"]
    assert main(["visualize", *options]) == 2
    assert f"{image}: no detection reaches 1.0" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [f"{image.stem}-encoder.png"]
    with pytest.raises(ValueError, match="no detection"):
        main(["visualize", *options, "--debug"])


def test_matching_is_that_of_the_run(run, tmp_path):
    """A run that was matched by the class alone is explained by its own costs."""
    checkpoint = torch.load(run / "last.pt", weights_only=True)
    checkpoint["config"] |= {"cost_bbox": 0.0, "cost_giou": 0.0}
    torch.save(checkpoint, tmp_path / "other.pt")
    pictures = []
    for path in (run / "last.pt", tmp_path / "other.pt"):
        options = ["matching", str(path), "--out", str(tmp_path), "--index", "2"]
        assert main(["visualize", *options]) == 0
        pictures.append((tmp_path / "matching-2.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_queries_and_matching(run, voc_folder, tmp_path, capsys):
    assert main(["visualize", "queries", str(run), "--out", str(tmp_path)]) == 0
    assert main(["visualize", "matching", str(run), "--out", str(tmp_path), "--index", "2"]) == 0
    other = ["--data", f"voc:{voc_folder}", "--split", "train", "--images", "3"]
    assert main(["visualize", "queries", str(run), "--out", str(tmp_path / "other"), *other]) == 0
    for name in ("queries.png", "query-use.png", "matching-2.png", "other/queries.png"):
        assert min(Image.open(tmp_path / name).size) > 150
    capsys.readouterr()
    assert main(["visualize", "matching", str(run), "--index", "6"]) == 2
    assert "images 0..5" in capsys.readouterr().err
    assert main(["visualize", "matching", str(run), "--layer", "9"]) == 2
    assert "no decoder layer 9: there are outputs of 3, counted from 0" in capsys.readouterr().err
    file = tmp_path / "queries.png"
    assert main(["visualize", "queries", str(run), "--out", str(file)]) == 2
    assert f"error: --out is {file}, a file, expected a folder" in capsys.readouterr().err


def test_curves(run, tmp_path, capsys):
    assert main(["visualize", "curves", str(run), "--out", str(tmp_path / "c.png")]) == 0
    assert Image.open(tmp_path / "c.png").width > 1000
    assert main(["visualize", "curves", str(tmp_path)]) == 2
    assert "is missing, or has no row" in capsys.readouterr().err
    for name in ("c", "c.psd"):  # Pillow reads the second, and cannot write it
        assert main(["visualize", "curves", str(run), "--out", str(tmp_path / name)]) == 2
        assert "expected a picture such as" in capsys.readouterr().err
