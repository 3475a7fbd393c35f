"""COCO figures of a published DETR checkpoint: its labels are COCO's category ids, 0..90.

python examples/evaluate_published.py detr-r50-e632da11.pth val2017 instances_val2017.json
"""

import argparse
import json
from pathlib import Path

import torch

from detr_fast.data import CocoDetection, detr_eval
from detr_fast.evaluation import evaluate, format_metrics
from detr_fast.models import MODELS
from detr_fast.training import load_initial
from detr_fast.training.loader import default_workers

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("checkpoint", type=Path)
parser.add_argument("images", type=Path, help="the folder of the images")
parser.add_argument("annotations", type=Path, help="COCO's JSON file")
parser.add_argument("--model", choices=MODELS, default="resnet50")
parser.add_argument("--batch-size", type=int, default=2)
args = parser.parse_args()

# A class for each label; those of ids that COCO does not use have no boxes.
categories = json.loads(args.annotations.read_text("utf-8-sig"))["categories"]
names = {category["id"]: category["name"] for category in categories}
classes = [names.get(label, f"unused {label}") for label in range(91)]
dataset = CocoDetection(args.images, args.annotations, detr_eval(), classes)

model = MODELS[args.model](num_classes=91)
print(load_initial(model, args.checkpoint))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
workers = default_workers(device)
figures = evaluate(model.to(device), dataset, device, args.batch_size, workers)
print(format_metrics(figures, figures["per_class"], dataset.boxes_per_class()))
