"""Reading files of weights: safely, and with an error that names the file."""

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

# Checkpoints of the published training code hold its options: plain values in a Namespace.
# (torch 2.4 cannot be told to let it pass.)
_allowing = getattr(torch.serialization, "safe_globals", nullcontext)


class CheckpointError(ValueError):
    """A file of weights that is missing, unreadable or of another kind; the message names it."""


def read_weights(path: str | Path) -> dict[str, Any]:
    """What ``torch.save`` wrote to ``path``, on the CPU; no code in the file is run.

    Raises:
        CheckpointError: no such file, or not a dictionary of tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with _allowing([Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler comes upon in a file that is something else
        # torch's own message is a page about its options; its kind is all that helps here.
        raise CheckpointError(
            f"{path} cannot be read as PyTorch weights ({type(error).__name__}): "
            "it is damaged, or not such a file"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected a dictionary")
    return state
