"""FastMatcher in an installed Hugging Face transformers, without changing a line of it."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

from detr_fast.interop.matchers import huggingface

_REQUIRED = {
    "transformers.loss.loss_for_object_detection": huggingface.HungarianMatcher,
    "transformers.loss.loss_deformable_detr": huggingface.DeformableDetrHungarianMatcher,
    "transformers.loss.loss_rt_detr": huggingface.RTDetrHungarianMatcher,
}
_OPTIONAL = {"transformers.loss.loss_lw_detr": huggingface.LwDetrHungarianMatcher}

_replaced: dict[type, Callable[..., Any]] = {}  # the originals' own forward methods, while patched


class TransformersPatch:
    """What :func:`patch_transformers` returns: ``undo()`` removes the patch.

    As a context manager it restores the state before the call: inside another patch, it leaves that
    patch in place.
    """

    def __init__(self, applied: bool) -> None:
        self._applied = applied  # whether this call applied the patch

    def undo(self) -> None:
        """Restore transformers' own matchers, however often they were patched."""
        for original, forward in _replaced.items():
            original.forward = forward
        _replaced.clear()

    def __enter__(self) -> "TransformersPatch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._applied:
            self.undo()


def patch_transformers() -> TransformersPatch:
    """Make transformers' object detectors use FastMatcher: DETR, Conditional, Deformable and
    DAB DETR, RT-DETR, RT-DETR v2, D-FINE and DEIMv2, and, where transformers has it, LW-DETR.

    ::

        patch_transformers()  # from now on, until .undo() of what it returns
        with patch_transformers():  # or for this block
            ...

    It replaces the ``forward`` of the matcher classes, wherever those have been imported by name,
    with that of :mod:`detr_fast.interop.matchers.huggingface`; the losses stay transformers' own. A
    second call changes nothing. (Grounding DINO's matcher multiplies its class cost by text tokens,
    and those of MaskFormer and related models match masks: they stay as they are.)

    Returns:
        An object that removes the patch again.

    Raises:
        ImportError: if transformers is not installed.
        RuntimeError: if its matchers are not where version 5 has them, or take other arguments.
            Nothing is changed then.
    """
    try:
        version = importlib.import_module("transformers").__version__
    except ImportError as error:
        raise ImportError(f"patch_transformers needs transformers: {error}") from error
    pairs = [_original(name, matcher, version) for name, matcher in _REQUIRED.items()]
    pairs += [
        _original(name, matcher, version)
        for name, matcher in _OPTIONAL.items()
        if importlib.util.find_spec(name)
    ]
    new = [(original, matcher) for original, matcher in pairs if original not in _replaced]
    for original, matcher in new:
        _replaced[original] = original.forward
        original.forward = matcher.forward
    return TransformersPatch(applied=bool(new))


def _original(name: str, matcher: type, version: str) -> tuple[type, type]:
    where = f"{name}.{matcher.__name__}"
    problem = "patch_transformers replaces the matchers of transformers 5, but"
    try:
        original = getattr(importlib.import_module(name), matcher.__name__)
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"{problem} {version} has no {where} ({error})") from error
    for method in ("__init__", "forward"):
        actual, expected = _parameters(original, method), _parameters(matcher, method)
        if actual != expected:
            raise RuntimeError(
                f"{problem} in {version} {where}.{method} takes ({', '.join(actual)}), not "
                f"({', '.join(expected)})"
            )
    return original, matcher


def _parameters(kind: type, method: str) -> list[str]:
    """Return names and defaults, without annotations."""
    parameters = inspect.signature(getattr(kind, method)).parameters.values()
    return [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters]
