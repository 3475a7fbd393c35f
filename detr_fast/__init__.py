"""detr_fast: DETR for PyTorch, whole and fast. The public names; importing touches no GPU."""

from detr_fast.matching import FastMatcher
from detr_fast.ops import linear_sum_assignment

__version__ = "0.1.0"

__all__ = ["FastMatcher", "__version__", "linear_sum_assignment"]
