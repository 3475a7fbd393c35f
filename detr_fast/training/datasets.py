"""The data sets that a configuration names, with their transforms and memory limits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detr_fast.data import DetectionDataset, open_dataset
from detr_fast.data.free_memory import available_memory
from detr_fast.training import distributed
from detr_fast.training.config import TrainConfig
from detr_fast.training.recipes import eval_recipe, train_recipe


def open_data(
    config: TrainConfig, classes: list[str] | None = None
) -> tuple[DetectionDataset, DetectionDataset]:
    """Open the training and validation data of a configuration, with the same classes."""
    train_set = open_train_data(config, classes)
    taken = 0 if train_set.cache is None else train_set.cache.bytes
    return train_set, open_val_data(config, train_set.class_names, memory_taken=taken)


def open_train_data(config: TrainConfig, classes: list[str] | None = None) -> DetectionDataset:
    """Open the training data of a configuration, with its transforms."""
    return open_dataset(
        config.data,
        config.train_split,
        train_recipe(config, normalize=False),
        classes,
        boxes=config.boxes,
        voc_origin=config.voc_origin,
        scaled_decoding=config.draft,
        **_cache_options(config),
    )


def open_val_data(
    config: TrainConfig,
    classes: list[str],
    data: str | None = None,
    split: str | None = None,
    memory_taken: int = 0,
    boxes: str | None = None,
    voc_origin: int | None = None,
) -> DetectionDataset:
    """Open what a configuration is evaluated on, or ``data``, with its transforms and ``classes``.

    ``memory_taken``: bytes of memory that the training images may take. ``boxes`` and
    ``voc_origin``: how the boxes are read, if not as the configuration says.

    Raises:
        ValueError: no data at all, a ``split`` for data that names one split itself, a
            configuration whose training data does so and that has no ``val_data``, or a
            ``voc_origin`` of 1 for data that is not a Pascal VOC folder.
        DataError: see ``open_dataset``.
    """
    spec = data or config.val_data or config.data
    if not spec:
        raise ValueError("the model names no data of its own: choose what to use with --data")
    if voc_origin and not spec.startswith("voc:"):
        raise ValueError(f"voc_origin is {voc_origin}, but {spec} is not a Pascal VOC folder")
    if split is not None and _names_one_split(spec):
        raise ValueError(f"{spec} names one split: leave out the split {split!r}")
    if data is None and config.val_data is None and _names_one_split(spec):
        raise ValueError(f"{spec} names one split: choose what to evaluate on with --val-data")
    return open_dataset(
        spec,
        split or config.val_split,
        eval_recipe(config, normalize=False),
        classes,
        boxes=config.boxes if boxes is None else boxes,
        voc_origin=config.voc_origin if voc_origin is None else voc_origin,
        **_cache_options(config, memory_taken),
    )


def _cache_options(config: TrainConfig, taken: int = 0) -> dict[str, Any]:
    """Return the options for what a data set may cache in this process besides ``taken`` bytes."""
    if not config.cache:
        return {}
    limit = available_memory() // 2 if config.cache_gb is None else int(config.cache_gb * 1e9)
    share = limit // distributed.local_world_size()
    return {"cache_images": True, "cache_limit": max(0, share - taken)}


def _names_one_split(spec: str) -> bool:
    kind, _, rest = spec.partition(":")
    return kind == "coco" and ":" in rest and not Path(rest).is_dir()


def check_same_classes(train: Sequence[str], val: Sequence[str]) -> None:
    """Check that a label, an index in this list, means the same class in both data sets.

    Raises:
        ValueError: the first class that differs, or the numbers of classes if these do.
    """
    for index, (learned, expected) in enumerate(zip(train, val, strict=False)):
        if learned != expected:
            raise ValueError(
                f"class {index} is {learned!r} in the training data and {expected!r} in the "
                "validation data"
            )
    if len(train) != len(val):
        raise ValueError(
            f"the training data has {len(train)} classes, the validation data {len(val)}"
        )
