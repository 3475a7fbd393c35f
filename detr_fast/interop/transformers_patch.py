"""FastMatcher inside an installed Hugging Face transformers, without a changed line there."""

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
    """What :func:`patch_transformers` returns: ``undo()`` takes the patch out.

    As a context manager it leaves things as they were before the call: inside another patch, the
    patch stays.
    """

    def __init__(self, applied: bool) -> None:
        self._applied = applied  # whether this call put the patch in

    def undo(self) -> None:
        """Gives transformers its own matchers back, however often it was patched."""
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
    """Lets transformers' object detectors match by FastMatcher: DETR, Conditional, Deformable and
    DAB DETR, RT-DETR, RT-DETR v2, D-FINE and DEIMv2, and, where transformers has it, LW-DETR.

    ::

        patch_transformers()  # from now on; .undo() on what it returns ends it
        with patch_transformers():  # or for this block
            ...

    It replaces the ``forward`` of the matcher classes, wherever those have been imported by name,
    with those of :mod:`detr_fast.interop.matchers.huggingface`; the losses stay theirs. The second
    call changes nothing. (Grounding DINO's matcher multiplies its class cost by text tokens, and
    those of MaskFormer and its kin match masks: they stay as they are.)

    Returns:
        What takes the patch out again.

    Raises:
        ImportError: if transformers is not installed.
        RuntimeError: if its matchers are not where version 5 has them, or take other arguments.
            Nothing is changed then.
    """
    try:
        version = importlib.import_module("transformers").__version__
    except ImportError as error:
        raise ImportError(f"patch_transformers needs transformers: {error}") from error
    found = [_original(name, ours, version) for name, ours in _REQUIRED.items()]
    found += [
        _original(name, ours, version)
        for name, ours in _OPTIONAL.items()
        if importlib.util.find_spec(name)
    ]
    new = [(original, ours) for original, ours in found if original not in _replaced]
    for original, ours in new:
        _replaced[original] = original.forward
        original.forward = ours.forward
    return TransformersPatch(applied=bool(new))


def _original(name: str, ours: type, version: str) -> tuple[type, type]:
    where = f"{name}.{ours.__name__}"
    wanted = "patch_transformers knows the matchers of transformers 5, but"
    try:
        original = getattr(importlib.import_module(name), ours.__name__)
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"{wanted} {version} has no {where} ({error})") from error
    for method in ("__init__", "forward"):
        theirs, expected = _parameters(original, method), _parameters(ours, method)
        if theirs != expected:
            raise RuntimeError(
                f"{wanted} in {version} {where}.{method} takes ({', '.join(theirs)}), not "
                f"({', '.join(expected)})"
            )
    return original, ours


def _parameters(kind: type, method: str) -> list[str]:
    """Names and defaults, without annotations."""
    parameters = inspect.signature(getattr(kind, method)).parameters.values()
    return [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters]
