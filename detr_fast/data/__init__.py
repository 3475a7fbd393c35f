"""Data: COCO json, Pascal VOC folders, generated shapes; transforms; the padding collate."""

from detr_fast.data.coco import CocoDetection
from detr_fast.data.collate import Batch, collate
from detr_fast.data.dataset import DetectionDataset
from detr_fast.data.encoded import DeviceDecoder, Encoded
from detr_fast.data.errors import DataError, clean_message, is_worker_lost
from detr_fast.data.images import read_image
from detr_fast.data.prefetch import Prefetcher, to_device
from detr_fast.data.records import Record, Records
from detr_fast.data.shapes import Shapes
from detr_fast.data.sources import open_dataset
from detr_fast.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Recipe,
    denormalize,
    detr_eval,
    detr_train,
    fixed_eval,
    normalize,
    small_train,
)
from detr_fast.data.voc import VocDetection

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batch",
    "CocoDetection",
    "DataError",
    "DetectionDataset",
    "DeviceDecoder",
    "Encoded",
    "Prefetcher",
    "Recipe",
    "Record",
    "Records",
    "Shapes",
    "VocDetection",
    "clean_message",
    "collate",
    "denormalize",
    "detr_eval",
    "detr_train",
    "fixed_eval",
    "is_worker_lost",
    "normalize",
    "open_dataset",
    "read_image",
    "small_train",
    "to_device",
]
