"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from detr_fast.models import detr_resnet18, detr_tiny

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_training_loop():
    """The first block, in the loop that it is a part of."""
    (code,) = (block for block in BLOCKS if "FastMatcher" in block)
    weight = torch.zeros(1, requires_grad=True)
    calls = []

    def model(images):
        layer = {
            "pred_logits": torch.zeros(1, 4, 3) + weight,
            "pred_boxes": torch.full((1, 4, 4), 0.5),
        }
        return {**layer, "aux_outputs": [layer, layer]}

    def your_set_loss(outputs, targets, pairs):
        calls.append(pairs)
        return outputs["pred_logits"].sum()

    target = {"labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.4)}
    names = {"loader": [(None, [target])] * 2, "model": model, "your_set_loss": your_set_loss}
    exec(code, names | {"optimizer": torch.optim.SGD([weight], lr=0.1)})
    assert len(calls) == 6 and all(len(pairs[0][0]) == 1 for pairs in calls)
    assert weight.item() == pytest.approx(-2 * 0.1 * 36)


def test_python_example():
    (code,) = (block for block in BLOCKS if "detr_resnet50" in block)
    names: dict = {}
    exec(code, names)
    assert names["outputs"]["pred_logits"].shape == (2, 100, 92)
    assert len(names["detections"]) == 2
    assert names["model"].class_embed.weight.grad.abs().sum() > 0


def test_detector(tmp_path, monkeypatch, capsys):
    (code,) = (block for block in BLOCKS if "Detector" in block)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("photo.jpg")
    model = detr_resnet18(num_classes=2, num_queries=3)
    torch.nn.init.zeros_(model.class_embed.weight)
    model.class_embed.bias.data = torch.tensor([0.0, 9.0, 0.0])  # the second class, surely
    torch.save(model.state_dict(), "weights.pth")
    exec(code.replace("runs/NAME", "weights.pth"), {})
    assert capsys.readouterr().out.count("class 1 1.00 [") == 3


exports_sizes = pytest.mark.skipif(
    not hasattr(torch.export.Dim, "AUTO"), reason="this torch exports no sizes on its own"
)


def _exported(model: nn.Module) -> dict:
    """The names that the example of an export of this model defines."""
    (code,) = (block for block in BLOCKS if "torch.export.export" in block)
    names: dict = {"model": model}
    exec(code, names)
    return names


@exports_sizes
@pytest.mark.parametrize("builder", [detr_tiny, detr_resnet18])
def test_export(builder):
    names = _exported(builder(num_classes=3))
    module = names["exported"].module()
    # Sizes of which every stage's half is even, or odd.
    for shape in ((1, 3, 320, 416), (3, 3, 33, 66), (2, 3, 70, 101), (1, 3, 427, 96)):
        images = torch.randn(shape)
        with torch.no_grad():
            found, expected = module(images), names["model"](images)
        assert found.keys() == expected.keys() == {"pred_logits", "pred_boxes"}
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)


@exports_sizes
def test_export_as_onnx(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in BLOCKS if "torch.onnx" in block)
    names = _exported(detr_resnet18(num_classes=3))
    exec(code, names)
    session = runtime.InferenceSession("detr.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 320, 416), (3, 3, 335, 290)):
        images = torch.randn(*shape)
        logits, boxes = session.run(["pred_logits", "pred_boxes"], {"images": images.numpy()})
        with torch.no_grad():
            expected = names["model"](images)
        for found, name in ((logits, "pred_logits"), (boxes, "pred_boxes")):
            torch.testing.assert_close(
                torch.from_numpy(found), expected[name], atol=1e-4, rtol=1e-4
            )
