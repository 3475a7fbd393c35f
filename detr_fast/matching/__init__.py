"""The matching of predictions and targets, and what it is given and returns."""

from detr_fast.matching.matcher import FastMatcher, Pairs, Targets
from detr_fast.matching.packing import Matches, PackedTargets

__all__ = ["FastMatcher", "Matches", "PackedTargets", "Pairs", "Targets"]
