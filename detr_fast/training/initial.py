"""Starting from weights that were trained before. All else starts anew: that is not resuming."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detr_fast.models.weights import CheckpointError, read_weights
from detr_fast.training.checkpoint import evaluated_file

# What belongs to the data that was trained on: its classes, and how many objects an image had.
OF_THE_DATA = ("class_embed.", "query_embed.")
COUNTER = ".num_batches_tracked"  # of batch norm, where it is trained; nothing depends on it


@dataclass(frozen=True)
class Initial:
    """What a model got from a file: the names of its tensors."""

    file: Path
    loaded: tuple[str, ...]
    left: tuple[str, ...]  # as they were initialised

    def __str__(self) -> str:
        left = ", ".join(self.left) or "nothing"
        return f"{self.file}: loaded {len(self.loaded)} tensors; left as initialised: {left}"


def load_initial(model: nn.Module, path: str | Path) -> Initial:
    """Load into a DETR what another one has learned, on other classes maybe.

    The class head of another number of classes and the queries of another number or kind are left
    as they are; everything else has to fit by name and shape.

    Args:
        path: a run's folder or a checkpoint, whose evaluated weights are taken, or a checkpoint of
            the published code, ``{"model": state dict}``, or a state dict alone. No code in it is
            run.

    Raises:
        CheckpointError: no such file, or weights of another model; the message names the file and
            the first tensor that does not fit. The model is unchanged then.
    """
    file = evaluated_file(path)
    found, ours = _weights(file), _without_counters(model.state_dict())
    for name, tensor in ours.items():
        if name.startswith(OF_THE_DATA):
            continue
        if name not in found:
            raise CheckpointError(f"{file} does not fit the model: it has no {name}")
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{file} does not fit the model: {name} is {list(found[name].shape)} there and "
                f"{list(tensor.shape)} here"
            )
    for name in found:
        if name not in ours and not name.startswith(OF_THE_DATA):
            raise CheckpointError(f"{file} does not fit the model, which has no {name}")
    loaded = [n for n, tensor in ours.items() if n in found and found[n].shape == tensor.shape]
    model.load_state_dict({name: found[name] for name in loaded}, strict=False)
    return Initial(file, tuple(loaded), tuple(name for name in ours if name not in loaded))


def _weights(file: Path) -> dict[str, Tensor]:
    state = read_weights(file)
    # Ours have both, as load_model takes them; the published ones, "model" alone.
    weights = state.get("ema") or state.get("model", state)
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(
            f"{file} holds no weights: expected a checkpoint, a state dict as its entry 'model', "
            "or a state dict"
        )
    return _without_counters(weights)


def _without_counters(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}
