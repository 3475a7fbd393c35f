"""DETR and its parts."""

from detr_fast.models.builders import (
    MODELS,
    build_detr,
    build_resnet_detr,
    detr_resnet18,
    detr_resnet34,
    detr_resnet50,
    detr_resnet50_dc5,
    detr_resnet101,
    detr_resnet101_dc5,
    detr_tiny,
)
from detr_fast.models.detr import DETR
from detr_fast.models.postprocess import PostProcess

__all__ = [
    "DETR",
    "MODELS",
    "PostProcess",
    "build_detr",
    "build_resnet_detr",
    "detr_resnet18",
    "detr_resnet34",
    "detr_resnet50",
    "detr_resnet50_dc5",
    "detr_resnet101",
    "detr_resnet101_dc5",
    "detr_tiny",
]
