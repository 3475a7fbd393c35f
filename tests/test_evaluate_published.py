"""The example that evaluates a published checkpoint, whose labels are category ids."""

import argparse
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.baselines.published_detr import PublishedDETR

EXAMPLE = Path(__file__).parents[1] / "examples" / "evaluate_published.py"

pytest.importorskip("pycocotools")


def test_perfect_detections_in_the_published_labels(coco_files, tmp_path, monkeypatch, capsys):
    images, truth = coco_files
    file = tmp_path / "checkpoint.pth"
    options = argparse.Namespace(backbone="resnet18")
    torch.save({"model": PublishedDETR("resnet18").state_dict(), "args": options}, file)
    content = json.loads(truth.read_text())

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
    command = [str(EXAMPLE), str(file), str(images), str(truth), "--model", "resnet18"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    assert "left as initialised: nothing" in said
    assert "IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000" in said
    for name in ("circle", "square", "triangle"):
        assert f"\n {name:<13}" in said
