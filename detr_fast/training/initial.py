"""Starting from weights that were trained before. All else starts anew: that is not resuming."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detr_fast.models.weights import CheckpointError, read_weights
from detr_fast.training.checkpoint import best_checkpoint_path

# What belongs to the data that was trained on: its classes, and how many objects an image had.
HEAD = "class_embed."  # a row per class, then that of "no object"
DATA_DEPENDENT = (HEAD, "query_embed.")
COUNTER = ".num_batches_tracked"  # of batch norm, where it is trained; nothing depends on it


@dataclass(frozen=True)
class Initial:
    """What a model got from a file: the names of its tensors."""

    file: Path
    loaded: tuple[str, ...]
    left: tuple[str, ...]  # as they were initialised
    classes: tuple[int, int] | None = None  # of a head loaded by name: those found, of how many

    def __str__(self) -> str:
        left = ", ".join(self.left) or "nothing"
        head = ""
        if self.classes is not None:
            head = " class_embed: {} of {} classes by name;".format(*self.classes)
        return f"{self.file}: loaded {len(self.loaded)} tensors;{head} left as initialised: {left}"


def load_initial(
    model: nn.Module, path: str | Path, class_names: Sequence[str] | None = None
) -> Initial:
    """Load into a DETR what another one has learned, on other classes maybe.

    Where the classes of both are known and are not the same ones in the same order, the class head
    is loaded row by row: those of classes that both have, by name, and that of "no object"; new
    classes are left as they are. Otherwise a class head of another number of classes is left as it
    is, and so are the queries of another number or kind; everything else has to fit by name and
    shape.

    Args:
        model: a DETR.
        path: a run's folder or a checkpoint, whose evaluated weights are taken, or a checkpoint of
            the published code, ``{"model": state dict}``, or a state dict alone. No code in it is
            run. Checkpoints of runs hold the names of their classes, published ones do not.
        class_names: the model's K classes, in the order of the labels.

    Raises:
        CheckpointError: no such file, or weights of another model; the message names the file and
            the first tensor that does not fit, or a class head that has no row for each of the
            file's class names. The model is unchanged then.
        ValueError: class names that are not as many as the model has classes.
    """
    file = best_checkpoint_path(path)
    state = read_weights(file)
    found, ours = _weights(file, state), _without_counters(model.state_dict())
    for name, tensor in ours.items():
        if name.startswith(DATA_DEPENDENT):
            continue
        if name not in found:
            raise CheckpointError(f"{file} does not fit the model: it has no {name}")
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{file} does not fit the model: {name} is {list(found[name].shape)} there and "
                f"{list(tensor.shape)} here"
            )
    for name in found:
        if name not in ours and not name.startswith(DATA_DEPENDENT):
            raise CheckpointError(f"{file} does not fit the model, which has no {name}")
    theirs = state.get("class_names")
    known = isinstance(theirs, list) and all(isinstance(name, str) for name in theirs)
    head, classes = {}, None
    if known and class_names is not None and theirs != [*class_names]:
        head = _head_by_name(file, found, theirs, ours, class_names)
        classes = sum(name in theirs for name in class_names), len(class_names)
    fits = {n: found[n] for n, t in ours.items() if n in found and found[n].shape == t.shape}
    model.load_state_dict(fits | head, strict=False)
    loaded = tuple(name for name in fits if name not in head)
    left = tuple(name for name in ours if name not in fits and name not in head)
    return Initial(file, loaded, left, classes)


def _head_by_name(
    file: Path,
    found: dict[str, Tensor],
    theirs: Sequence[str],
    ours: dict[str, Tensor],
    class_names: Sequence[str],
) -> dict[str, Tensor]:
    """Our class head, with the file's rows of the classes that both have, and of "no object"."""
    source = {name: row for row, name in enumerate(theirs)}
    rows = [row for row, name in enumerate(class_names) if name in source]
    found_rows = [source[class_names[row]] for row in rows]
    head = {}
    for name, tensor in ours.items():
        if not name.startswith(HEAD):
            continue
        if len(tensor) != len(class_names) + 1:
            raise ValueError(
                f"{len(class_names)} class names for a model of {len(tensor) - 1} classes"
            )
        expected = [len(theirs) + 1, *tensor.shape[1:]]
        if name not in found or list(found[name].shape) != expected:
            there = list(found[name].shape) if name in found else "missing"
            raise CheckpointError(
                f"{file}: {name} is {there}, expected {expected} for its {len(theirs)} class names"
            )
        head[name] = tensor.clone()
        head[name][[*rows, -1]] = found[name][[*found_rows, -1]].to(tensor)
    return head


def _weights(file: Path, state: dict[Any, Any]) -> dict[str, Tensor]:
    # Ours have both, as load_model takes them; the published ones, "model" alone.
    ema = state.get("ema")
    weights = state.get("model", state) if ema is None else ema
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise CheckpointError(
            f"{file} holds no weights: expected a checkpoint, a state dict as its entry 'model', "
            "or a state dict"
        )
    return _without_counters(weights)


def _without_counters(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}
