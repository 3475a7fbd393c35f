"""The configuration of a run: defaults, checks, and what is built from it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detr_fast.models import detr_resnet18, detr_tiny
from detr_fast.training import TrainConfig
from detr_fast.training.datasets import open_data


def test_defaults_follow_the_model():
    paper = TrainConfig.create(model="resnet50")
    assert (paper.lr, paper.lr_backbone, paper.clip, paper.epochs) == (1e-4, 1e-5, 0.1, 300)
    assert paper.backbone_weights == "imagenet" and paper.recipe == "detr"
    assert (paper.schedule, paper.lr_drop, paper.ema) == ("step", 2 / 3, 0)  # 200 of 300 epochs
    assert (paper.batch_size, paper.warmup_steps, paper.weight_decay) == (2, 0, 1e-4)
    assert TrainConfig.create() == TrainConfig()
    assert TrainConfig.create(model="resnet50", lr=3e-4).lr == 3e-4


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({"model": "resnet18"}, 1e-5),
        ({"model": "resnet18", "backbone_weights": "weights.pth", "lr": 3e-4}, 1e-5),
        ({"model": "resnet18", "backbone_weights": None}, 1e-4),
        ({"model": "resnet18", "backbone_weights": None, "lr": 3e-4}, 3e-4),
        ({"model": "resnet18", "backbone_weights": None, "lr_backbone": 2e-5}, 2e-5),
        ({"model": "resnet18", "backbone_weights": None, "init_from": "detr.pth"}, 1e-5),
        ({"lr": 1e-3}, 1e-3),
    ],
)
def test_the_backbones_rate_follows_its_weights(options, rate):
    config = TrainConfig.create(**options)
    assert config.to_dict()["lr_backbone"] == rate
    # However it is built. (Alone, the class takes no default of the paper.)
    direct = {"lr": config.lr, "backbone_weights": config.backbone_weights, **options}
    assert TrainConfig(**direct).lr_backbone == rate


@pytest.mark.parametrize("build", [TrainConfig, TrainConfig.create])
def test_memory_for_the_cache_turns_it_on(build):
    assert build(cache_gb=8.0).cache is True and build().cache is False
    assert build(cache_gb=8.0, cache=False).cache is False


def test_numbers_of_other_types_and_paths_become_plain_values():
    config = TrainConfig(
        model="resnet18",
        lr=np.float32(0.5),
        clip=1,
        epochs=np.int64(3),
        workers=np.uint8(2),
        image_size=(np.int64(64), 96),
        schedule=np.str_("cosine"),
        backbone_weights=Path("w.pth"),
    )
    values = config.to_dict()
    plain = {"lr": 0.5, "clip": 1.0, "epochs": 3, "workers": 2, "image_size": (64, 96)}
    plain |= {"schedule": "cosine", "backbone_weights": "w.pth"}
    for name, value in plain.items():
        assert values[name] == value and type(values[name]) is type(value), name
    assert all(type(side) is int for side in config.image_size)
    assert TrainConfig(init_from=Path("run")).init_from == "run"


def test_round_trip():
    config = TrainConfig.create(image_size=(240, 320))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vgg"}, "model is 'vgg', expected one of tiny, resnet18, "),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 2.5}, r"epochs is 2\.5, expected a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"eos_coef": -1.0}, r"eos_coef is -1\.0"),
        ({"image_size": (1, 1)}, r"image_size is \(1, 1\), expected at least 32"),
        ({"recipe": "detr", "flip_vertical": True}, "belong to the small recipe"),
        ({"lr": -1.0}, r"lr is -1\.0"),
        ({"schedule": "linear"}, "schedule is 'linear', expected one of step, cosine"),
        ({"cache_gb": 0.0}, r"cache_gb is 0\.0, expected more than 0"),
        ({"cache_gb": 1e305}, r"cache_gb is 1e\+305, expected more than 0, less than 1e9"),
        ({"dropout": 1.5}, r"dropout is 1\.5"),
        ({"ema": 1.0}, r"ema is 1\.0"),
        ({"lr_drop": 0.0}, r"lr_drop is 0\.0"),
        ({"model": "resnet18", "stride": 8}, "stride is an option of the tiny model"),
        ({"backbone_weights": "imagenet"}, "no pretrained backbone"),
        ({"boxes": "cut"}, "boxes is 'cut', expected one of error, clip"),
        ({"data": "voc:x", "voc_origin": 2}, "voc_origin is 2, expected one of 0, 1"),
        ({"voc_origin": 1}, "voc_origin is 1, but shapes is not a Pascal VOC folder"),
        (
            {"voc_origin": 1, "data": "coco:a:b", "val_data": "coco:c:d"},
            "voc_origin is 1, but neither coco:a:b nor coco:c:d is a Pascal VOC folder",
        ),
        ({"amp": "fp16"}, "amp is 'fp16', expected one of auto, none, bf16"),
        ({"recipe": "DETR"}, "recipe is 'DETR', expected one of small, detr"),
        ({"cost_class": 0.0, "cost_bbox": 0, "cost_giou": 0}, "cost_giou are all 0, expected"),
        ({"weight_class": 0, "weight_bbox": 0, "weight_giou": 0}, "weight_giou are all 0"),
        ({"compile": "no"}, "compile is 'no', expected True or False"),
        ({"epochs": True}, "epochs is True, expected a whole number"),
        ({"lr": "1e-4"}, "lr is '1e-4', expected a number"),
        ({"seed": None}, "seed is None, expected a whole number"),
        ({"lr": 10**400}, "lr is beyond the range of a float, expected a number"),
        ({"epochs": np.float64(2)}, r"epochs is .*2\.0.*, expected a whole number"),
        ({"compile": np.int64(1)}, "compile is .*1.*, expected True or False"),
        ({"data": Path("shapes")}, r"data is .*, expected a string"),
        ({"backbone_weights": b"w.pth"}, r"backbone_weights is .*, expected a string"),
        ({"image_size": (240,)}, r"image_size is \(240,\), expected \(height, width\)"),
        ({"image_size": (240.0, 320.0)}, r"image_size is .*, expected \(height, width\)"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.create(**options)
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(TrainConfig().to_dict() | options)
    with pytest.raises(ValueError, match=message):
        replace(TrainConfig(), **options)


def test_an_unknown_option_is_named():
    with pytest.raises(ValueError, match="unknown training option 'momentum'"):
        TrainConfig.create(momentum=0.9)


def test_an_older_configuration_has_the_defaults_of_what_is_new():
    older = {"model": "resnet50", "epochs": 300, "recipe": "detr", "image_size": None}
    assert TrainConfig.from_dict(older) == TrainConfig(model="resnet50", epochs=300, recipe="detr")


def test_open_data_gives_both_sets_the_same_classes(voc_folder):
    train, val = open_data(TrainConfig.create(data=f"voc:{voc_folder}"))
    assert train.class_names == val.class_names and (len(train), len(val)) == (12, 6)


def test_model_builds_from_config():
    config = TrainConfig.create(model="resnet18", backbone_weights=None, query_mode="anchor")
    args = config.model_args(num_classes=2)
    assert args["norm"] == "batch" and args["trainable_layers"] == 5
    frozen = TrainConfig.create(model="resnet18", lr_backbone=0.0).model_args(num_classes=2)
    assert frozen["trainable_layers"] == 0
    args_with_weights = TrainConfig.create(model="resnet18").model_args(num_classes=2)
    assert args_with_weights["norm"] == "frozen" and args_with_weights["trainable_layers"] == 3
    assert type(detr_resnet18(**args).query_embed).__name__ == "AnchorQueries"
    assert detr_tiny(**TrainConfig.create(stride=16).model_args(3)).backbone[0].num_channels == 256
