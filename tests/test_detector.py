"""The detector of the Python interface, on runs and on published checkpoints."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.baselines.published_detr import PublishedDETR
from detr_fast.cli import main
from detr_fast.data import DataError, read_image
from detr_fast.detector import Detector
from detr_fast.models import detr_resnet18, detr_resnet50
from detr_fast.models.weights import CheckpointError
from detr_fast.training import load_trained
from detr_fast.training.published import COCO_CLASSES

needs_options = pytest.mark.skipif(
    not hasattr(torch.serialization, "safe_globals"), reason="this torch reads no Namespace safely"
)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Weights under the published names: ResNet-18, 100 queries, 91 classes."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("published") / "detr-r18.pth"
    torch.save({"model": PublishedDETR("resnet18").state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def detector(published) -> Detector:
    return Detector.load(published, "cpu")


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    return tmp_path / "turned.jpg"


def test_detections_are_those_of_the_published_model(published, picture):
    theirs = PublishedDETR("resnet18")
    theirs.load_state_dict(torch.load(published, weights_only=True)["model"])
    detector = Detector.load(published, "cpu", amp="none")
    found = detector(picture, threshold=0)
    pixels = read_image(picture)
    inputs = detector.prepare(pixels)
    assert inputs.shape == (1, 3, 1200, 800)  # the published evaluation's size
    with torch.no_grad():
        outputs = theirs.eval()(inputs, torch.zeros(1, 1200, 800, dtype=torch.bool))
    scores, labels = outputs["pred_logits"][0].softmax(-1)[:, :-1].max(-1)
    x, y, w, h = outputs["pred_boxes"][0].unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1).clamp(0, 1)
    order = scores.argsort(descending=True)
    torch.testing.assert_close(found["scores"], scores[order], atol=1e-5, rtol=1e-4)
    assert (found["labels"] == labels[order]).float().mean() > 0.95  # of equal scores, either
    expected = corners[order] * torch.tensor([40, 60, 40, 60])
    torch.testing.assert_close(found["boxes"], expected, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("kind", [str, Path, Image.open, read_image])
def test_a_picture_comes_in_any_form(detector, picture, kind):
    expected = detector(picture, threshold=0)
    assert expected["boxes"].max() > 40  # in pixels of the picture as it is turned, 40 x 60
    found = detector(kind(picture), threshold=0)
    for name, values in expected.items():
        assert torch.equal(found[name], values)


def test_the_threshold_and_the_order(detector, picture):
    every = detector(picture, threshold=0)
    assert len(every["scores"]) == 100
    assert torch.equal(every["scores"], every["scores"].sort(descending=True).values)
    lowest = float(every["scores"][6])
    sure = detector(picture, threshold=lowest)
    assert torch.equal(sure["boxes"], every["boxes"][:7])


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(3, 8, 8), r"torch.float32 \[3, 8, 8\]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"torch.uint8 \[8, 8, 3\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"torch.uint8 \[1, 3, 8, 8\]"),
    ],
)
def test_other_tensors_are_refused(detector, tensor: Tensor, said):
    with pytest.raises(ValueError, match=f"{said}, expected uint8 \\[3, H, W\\]"):
        detector(tensor)


def test_what_is_no_picture_is_refused(detector, picture):
    for other, kind in ((np.asarray(Image.open(picture)), "ndarray"), ([picture], "list")):
        with pytest.raises(TypeError, match=f"the picture is a {kind}, expected a file"):
            detector(other)
    for empty in (torch.zeros(3, 0, 8, dtype=torch.uint8), Image.new("RGB", (8, 0))):
        with pytest.raises(ValueError, match=r"the picture has no pixels: it is \[3, 0, 8\]"):
            detector(empty)


@pytest.mark.parametrize("threshold", [-0.1, 50, float("nan")])
def test_a_threshold_that_is_no_score(detector, picture, threshold):
    with pytest.raises(ValueError, match=r"threshold is .* expected a score"):
        detector(picture, threshold)


def test_pictures_that_cannot_be_read_are_named(detector, tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: no such image file"):
        detector(tmp_path / "gone.png")
    with pytest.raises(DataError, match="the picture: floating point pixels"):
        detector(Image.new("F", (8, 8)))


class TestPublishedCheckpoint:
    def test_what_its_weights_show(self, published):
        checkpoint = load_trained(published)
        assert checkpoint["config"]["model"] == "resnet18"
        assert checkpoint["model_args"]["num_queries"] == 100
        assert checkpoint["class_names"][17] == "cat" and checkpoint["category_ids"][17] == 17
        assert [name for name in checkpoint["class_names"] if name.startswith("unused")] == [
            f"unused {label}" for label in (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
        ]

    @pytest.mark.parametrize(
        ("name", "options", "model"),
        [
            ("detr-r50-e632da11.pth", {}, "resnet50"),
            ("detr-r50-dc5-f0fb7ef5.pth", {}, "resnet50_dc5"),
            ("detr-r50-1adc5e02.pth", {}, "resnet50"),  # hexadecimal digits
            pytest.param("checkpoint.pth", {"dilation": True}, "resnet50_dc5", marks=needs_options),
            pytest.param(
                "checkpoint-dc5.pth", {"dilation": False}, "resnet50", marks=needs_options
            ),
        ],
    )
    def test_a_dilated_stage(self, tmp_path, name, options, model):
        state = {"model": zeros()}
        if options:
            state["args"] = argparse.Namespace(**options)
        torch.save(state, tmp_path / name)
        assert load_trained(tmp_path / name)["config"]["model"] == model

    @pytest.mark.parametrize(
        "kind", [dict, pytest.param(argparse.Namespace, marks=needs_options)], ids=str
    )
    def test_the_sizes_of_its_options(self, tmp_path, kind):
        options = {"hidden_dim": 64, "nheads": 4, "enc_layers": 1, "dec_layers": 2}
        options["dim_feedforward"] = 32
        model = detr_resnet18(
            num_classes=2,
            num_queries=7,
            dim=64,
            num_heads=4,
            num_encoder_layers=1,
            num_decoder_layers=2,
            dim_feedforward=32,
            position_encoding="learned",
        )
        state = {"model": model.state_dict(), "args": kind(**options)}
        torch.save(state, tmp_path / "small.pth")
        detector = Detector.load(tmp_path / "small.pth", "cpu")
        assert detector.class_names == ["class 0", "class 1"]
        pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
        assert len(detector(pixels, threshold=0)["scores"]) == 7
        for name, value in model.state_dict().items():
            assert torch.equal(detector.model.state_dict()[name], value)

    @pytest.mark.parametrize(
        ("state", "said"),
        [
            ({"model": {"weight": torch.zeros(1)}}, "nor of a published DETR: it has no class_emb"),
            ({"epoch": 3}, "holds no weights"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path, state, said):
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=f"other.pth .*{said}"):
            load_trained(tmp_path / "other.pth")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"args": [4]}, "args is a list, expected options"),
            ({"args": {"enc_layers": 5}}, r"encoder.layers.5.\S+ is \[.*\], expected missing"),
            ({"args": {"nheads": 7}}, "no resnet50 has its options: .*divisible"),
        ],
    )
    def test_options_that_do_not_fit_are_named(self, tmp_path, change, said):
        torch.save({"model": zeros(), **change}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=rf"other\.pth.*{said}") as error:
            load_trained(tmp_path / "other.pth")
        assert len(str(error.value)) < 300

    def test_weights_of_another_model_are_refused(self, tmp_path):
        """Of Conditional DETR, say, whose names are nearly the same."""
        state = zeros(num_classes=90, num_queries=300)
        del state["transformer.decoder.layers.0.self_attn.in_proj_weight"]
        torch.save({"model": state}, tmp_path / "other.pth")
        said = r"other\.pth is not of a published DETR: .*self_attn.in_proj_weight is missing"
        with pytest.raises(CheckpointError, match=said):
            load_trained(tmp_path / "other.pth")

    def test_an_unknown_backbone_is_refused(self, published, tmp_path):
        state = torch.load(published, weights_only=True)["model"]
        state = {name: value for name, value in state.items() if ".layer3.1." not in name}
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match="a model with 1 blocks in its backbone's layer3"):
            load_trained(tmp_path / "other.pth")


def zeros(**options) -> dict[str, Tensor]:
    """Weights of a ResNet-50's DETR that take no memory."""
    with torch.device("meta"):
        state = detr_resnet50(**options).state_dict()
    return {name: torch.zeros(1).expand(tensor.shape) for name, tensor in state.items()}


class TestCommands:
    def test_perfect_detections_in_the_published_labels(
        self, published, coco_files, tmp_path, monkeypatch, capsys
    ):
        """A label is COCO's category id, whatever the file's categories are."""
        pytest.importorskip("pycocotools")
        images, truth = coco_files
        content = json.loads(truth.read_text())
        ids = [category["id"] for category in content["categories"]]
        assert ids == [3, 17, 90]
        for category in content["categories"]:
            category["name"] = COCO_CLASSES[category["id"]]
        file = tmp_path / "coco.json"
        file.write_text(json.dumps(content))

        def detect(model, loader, *_):
            found = {}
            for image in content["images"]:
                of_image = [a for a in content["annotations"] if a["image_id"] == image["id"]]
                boxes = torch.tensor([annotation["bbox"] for annotation in of_image])
                found[image["id"]] = {
                    "scores": torch.ones(len(boxes)),
                    "labels": torch.tensor([annotation["category_id"] for annotation in of_image]),
                    "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
                }
            return found

        monkeypatch.setattr("detr_fast.evaluation.detect", detect)
        command = ["eval", str(published), "--data", f"coco:{images}:{file}", "--device", "cpu"]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert f"{published}, published weights: resnet18, 100 queries, 91 classes" in said
        assert "IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000" in said
        for name in ("car", "cat", "toothbrush"):
            assert f"\n {name:<10}" in said

    def test_without_data(self, published, capsys):
        assert main(["eval", str(published), "--device", "cpu"]) == 2
        assert "choose what to use with --data" in capsys.readouterr().err

    def test_predict_without_pictures(self, published, picture, tmp_path, capsys):
        out = tmp_path / "out"
        command = ["predict", str(published), str(picture), "--out", str(out), "--no-pictures"]
        assert main([*command, "--threshold", "0", "--device", "cpu"]) == 0
        assert [path.name for path in out.iterdir()] == ["detections.json"]
        (result,) = json.loads((out / "detections.json").read_text())
        assert result.keys() == {"file", "height", "width", "detections"}
        assert (result["height"], result["width"]) == (60, 40)
        assert len(result["detections"]) == 100
        for found in result["detections"]:
            assert COCO_CLASSES[found["category_id"]] == found["category"]
        assert "wrote" in capsys.readouterr().out

    def test_a_model_of_nan_is_said(self, published, picture, tmp_path, capsys):
        state = torch.load(published, weights_only=True)["model"]
        state["class_embed.bias"][3] = torch.nan
        broken, out = tmp_path / "broken.pth", tmp_path / "out"
        torch.save(state, broken)
        command = ["predict", str(broken), str(picture), "--out", str(out), "--device", "cpu"]
        assert main(command) == 2
        assert f"{picture}: one of the detections' scores is not finite" in capsys.readouterr().err
        assert json.loads((out / "detections.json").read_text()) == []
        command = ["visualize", "attention", str(broken), str(picture), "--out", str(out)]
        assert main([*command, "--device", "cpu"]) == 2
        assert f"{picture}: the scores of 100 of 100 queries are NaN" in capsys.readouterr().err

    def test_attention(self, published, picture, tmp_path):
        command = ["visualize", "attention", str(published), str(picture), "--out", str(tmp_path)]
        assert main([*command, "--threshold", "0", "--device", "cpu"]) == 0
        assert (tmp_path / "turned-decoder.png").exists()

    def test_training_does_not_resume_it(self, published, capsys):
        assert main(["train", "--resume", str(published), "--device", "cpu"]) == 2
        assert "--resume the run's folder" in capsys.readouterr().err
