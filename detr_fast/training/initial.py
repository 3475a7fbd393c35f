"""Starting from trained weights. Everything else starts from scratch: this is not resuming."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from detr_fast.models.weights import CheckpointError, read_weights, weights_in, without_counters
from detr_fast.training.checkpoint import best_checkpoint_path
from detr_fast.training.published import COCO_CLASSES

# What depends on the training data: on its classes, and on how many objects an image had.
HEAD = "class_embed."  # a row per class, then one for "no object"
DATA_DEPENDENT = (HEAD, "query_embed.")
SHOWN = 8  # names of classes in a message


@dataclass(frozen=True)
class Initial:
    """The names of the tensors that a model got from a file, and of those it did not."""

    file: Path
    loaded: tuple[str, ...]
    left: tuple[str, ...]  # as they were initialised
    classes: dict[str, bool] | None = None  # of a head loaded by name: whether the file has it

    def __str__(self) -> str:
        head, left = "", list(self.left)
        if self.classes is not None:
            new = [name for name, found in self.classes.items() if not found]
            known = len(self.classes) - len(new)
            head = f" class_embed: {known} of {len(self.classes)} classes by name;"
            if new:
                more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
                left.append(f"of class_embed {', '.join(new[:SHOWN])}{more}")
        return (
            f"{self.file}: loaded {len(self.loaded)} tensors;{head} left as initialised: "
            f"{', '.join(left) or 'nothing'}"
        )


def load_initial(
    model: nn.Module, path: str | Path, class_names: Sequence[str] | None = None
) -> Initial:
    """Load into a DETR the weights of another one, possibly trained on other classes.

    If the classes of both are known and differ, or differ in order, the class head is loaded row by
    row: the rows of classes that both have, by name, and that of "no object"; the rows of new
    classes are left as they are. Otherwise a class head of another number of classes is left as it
    is. So are queries of another number or kind, always; everything else must match by name and
    shape.

    Args:
        model: a DETR.
        path: a run's folder or a checkpoint, of which the evaluated weights are used; a checkpoint
            of the published code, ``{"model": state dict}``; or a state dict alone. No code in it
            is run. Checkpoints of runs hold the names of their classes; a class head as large as
            the published one has COCO's, for a model of another size that has any of these.
        class_names: the model's K classes, in the order of the labels.

    Raises:
        CheckpointError: no such file, or weights of another model; the message names the file and
            the first tensor that does not fit or is not finite, or a class head that has no row for
            each of the file's class names. The model is left unchanged.
        ValueError: the number of class names is not the model's number of classes.
    """
    file = best_checkpoint_path(path)
    state = read_weights(file)
    source, target = weights_in(file, state), without_counters(model.state_dict())
    for name, tensor in target.items():
        if name.startswith(DATA_DEPENDENT):
            continue
        if name not in source:
            raise CheckpointError(f"{file} does not fit the model: it has no {name}")
        if source[name].shape != tensor.shape:
            raise CheckpointError(
                f"{file} does not fit the model: {name} is {list(source[name].shape)} in the file "
                f"and {list(tensor.shape)} in the model"
            )
    for name, tensor in source.items():
        if name not in target and not name.startswith(DATA_DEPENDENT):
            raise CheckpointError(f"{file} does not fit the model, which has no {name}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {name} is {tensor.dtype}, expected floating point")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {name} holds values that are not finite")
    file_classes = state.get("class_names", _published_classes(source, class_names))
    known = isinstance(file_classes, list) and all(isinstance(name, str) for name in file_classes)
    head, classes = {}, None
    if known and class_names is not None and file_classes != [*class_names]:
        head = _head_by_name(file, source, file_classes, target, class_names)
        classes = {name: name in file_classes for name in class_names}
    fits = {n: source[n] for n, t in target.items() if n in source and source[n].shape == t.shape}
    model.load_state_dict(fits | head, strict=False)
    loaded = tuple(name for name in fits if name not in head)
    left = tuple(name for name in target if name not in fits and name not in head)
    return Initial(file, loaded, left, classes)


def _published_classes(
    source: dict[str, Tensor], class_names: Sequence[str] | None
) -> list[str] | None:
    """Return COCO's class names by category id, the published code's labels, where they apply: to a
    class head of that size, for a model of another size that has some of these classes."""
    head, wanted = source.get(f"{HEAD}weight"), class_names or ()
    fits = head is not None and len(head) == len(COCO_CLASSES) + 1 != len(wanted) + 1
    return [*COCO_CLASSES] if fits and set(COCO_CLASSES) & set(wanted) else None


def _head_by_name(
    file: Path,
    source: dict[str, Tensor],
    file_classes: Sequence[str],
    target: dict[str, Tensor],
    class_names: Sequence[str],
) -> dict[str, Tensor]:
    """Return the model's class head with the file's rows of shared classes and "no object"."""
    file_row = {name: row for row, name in enumerate(file_classes)}
    rows = [row for row, name in enumerate(class_names) if name in file_row]
    source_rows = [file_row[class_names[row]] for row in rows]
    head = {}
    for name, tensor in target.items():
        if not name.startswith(HEAD):
            continue
        if len(tensor) != len(class_names) + 1:
            raise ValueError(
                f"{len(class_names)} class names for a model of {len(tensor) - 1} classes"
            )
        expected = [len(file_classes) + 1, *tensor.shape[1:]]
        if name not in source or list(source[name].shape) != expected:
            shape = list(source[name].shape) if name in source else "missing"
            raise CheckpointError(
                f"{file}: {name} is {shape}, expected {expected} for its {len(file_classes)} class "
                "names"
            )
        head[name] = tensor.clone()
        head[name][[*rows, -1]] = source[name][[*source_rows, -1]].to(tensor)
    return head
