"""detr_fast: DETR in PyTorch with a compiled matcher. Public names; importing touches no GPU."""

from pathlib import Path

try:
    from detr_fast import _C  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"{Path(__file__).parent} has no compiled module that this Python can load ({error}). "
        "In the source folder run pip install -e . or, to use what is installed, start Python in "
        "another folder"
    ) from error

from detr_fast import switches
from detr_fast.faults import PredictionError, check_faults
from detr_fast.matching import FastMatcher, Matches, PackedTargets
from detr_fast.ops import linear_sum_assignment

switches.check()

__version__ = "0.1.0"

__all__ = [
    "FastMatcher",
    "Matches",
    "PackedTargets",
    "PredictionError",
    "__version__",
    "check_faults",
    "linear_sum_assignment",
]
