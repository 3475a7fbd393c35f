"""Read files of weights safely, with errors that name the file."""

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Checkpoints of the published training code hold its options: plain values in a Namespace.
# (torch 2.4 has no way to allow it.)
_allowing = getattr(torch.serialization, "safe_globals", nullcontext)
_COUNTER = ".num_batches_tracked"  # of trained batch norm; nothing depends on it


class CheckpointError(ValueError):
    """A file of weights that is missing, unreadable or of another kind; the message names it."""


def read_weights(path: str | Path) -> dict[str, Any]:
    """Return what ``torch.save`` wrote to ``path``, on the CPU; no code in the file is run.

    Raises:
        CheckpointError: no such file, or not a dictionary of tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with _allowing([Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # an unpickler can raise anything on other files
        # torch's own message is a page about its options; only the error's type helps here.
        raise CheckpointError(
            f"{path} cannot be read as PyTorch weights ({type(error).__name__}): "
            "the file is damaged or of another kind"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected a dictionary")
    return state


def weights_in(file: Path, state: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights in what ``read_weights`` read from ``file``, by name.

    Those of a run's checkpoint are the ones that it is evaluated with. Counters of batches are left
    out: frozen batch norm has none.

    Args:
        state: a run's checkpoint, one of the published code, ``{"model": state dict}``, or a state
            dict alone.

    Raises:
        CheckpointError: there are none.
    """
    # A run's checkpoint has both. Published ones have only "model".
    ema = state.get("ema")
    weights = state.get("model", state) if ema is None else ema
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise CheckpointError(
            f"{file} holds no weights: expected a checkpoint, a state dict as its entry 'model', "
            "or a state dict"
        )
    return without_counters(weights)


def without_counters(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict without the numbers of batches that batch norm has seen."""
    return {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
