"""Bad input that compiled code finds, and what to call its place in an error.

A kernel on a GPU cannot raise, and the host does not wait for it. So each matching problem has a
slot in page-locked memory, which the device writes and the host reads without a wait: at the next
call of a matcher, and in :func:`check_faults`, which waits for the device first. What neither has
read when the process ends is printed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import NamedTuple

import torch

from detr_fast import _C


class PredictionError(ValueError):
    """Predictions that cannot be matched: not finite, or with a negative width or height.

    Diverging training causes it, or an overflow in half precision; a loop of one process may skip
    such a batch, on a GPU with ``validate="sync"``: else the error comes with a later batch. Wrong
    arguments and targets raise ``ValueError`` itself, and so does a cost that overflows.
    """


class Fault(NamedTuple):
    """A fault, with the fields that ``_C.match`` returns."""

    status: _C.Status
    problem: int  # layer * B + image; for a target's label or box: the image
    query: int  # -1: none, or not known
    target: int  # likewise

    def place(self, layers: int, images: int) -> str:
        """Return what is at fault, as in ``targets[2]['boxes'][0]``."""
        layer, image = divmod(self.problem, images)
        if self.status == _C.Status.invalid_label:
            return f"targets[{self.problem}]['labels'][{self.target}]"
        if self.status == _C.Status.invalid_target_box:
            return f"targets[{self.problem}]['boxes'][{self.target}]"
        key = "pred_logits" if self.status == _C.Status.invalid_logits else "pred_boxes"
        entry = f"{image}, {self.query}" if self.query >= 0 else f"{image}"
        query = f"{layer_name(layer, layers)}[{key!r}][{entry}]"
        if self.status == _C.Status.invalid_pair_cost:
            return f"the cost of matching {query} to targets[{image}]['boxes'][{self.target}]"
        return query

    def error(self, message: str) -> ValueError:
        """Return the error to raise, with a message that names the place."""
        return (PredictionError if self.status in _OF_PREDICTIONS else ValueError)(message)


def layer_name(layer: int, layers: int) -> str:
    """Return what to call the predictions of one of several decoder layers."""
    return "outputs" if layers == 1 else f"layers[{layer}]"


class FaultSlots:
    """One slot per problem of a call with L layers and B images."""

    def __init__(self, layers: int, images: int, pinned: bool) -> None:
        self.layers, self.images = layers, images
        self._memory = torch.zeros(
            layers * images, dtype=torch.int64, device="cpu", pin_memory=pinned
        )
        self._numbers = self._memory.numpy()
        self.process = os.getpid()  # a forked one may not read page-locked memory

    @property
    def address(self) -> int:
        return self._memory.data_ptr()

    def take(self) -> Fault | None:
        """Return the first fault and clear the slots that hold one; None if there is no fault."""
        (found,) = self._numbers.nonzero()
        if not len(found):
            return None
        problem = int(found[0])
        code = int(self._numbers[problem])
        self._numbers[found] = 0  # no other: the device may be writing to them
        status = _C.Status(code >> 56)
        query, target = (code >> 28) % (1 << 28) - 1, code % (1 << 28) - 1
        if status in (_C.Status.invalid_label, _C.Status.invalid_target_box):
            problem %= self.images
        return Fault(status, problem, query, target)


_slots: dict[tuple[int, int, int], FaultSlots] = {}  # by device index, L, B
_lock = threading.Lock()


def fault_slots(device: torch.device, layers: int, images: int) -> FaultSlots:
    """Return the slots for calls of this size. They live as long as the process, because CUDA
    graphs hold their address."""
    key = (device.index or 0, layers, images)
    slots = _slots.get(key)
    if slots is None:
        with _lock:
            if not _slots:
                atexit.register(_print_pending)
            slots = _slots.setdefault(key, FaultSlots(layers, images, pinned=device.type == "cuda"))
    return slots


def raise_pending(device: torch.device, when: str = " in an earlier call") -> None:
    """Raise a fault that calls on this device have found so far, without waiting for running ones.

    Raises:
        ValueError: names the place of the first fault; PredictionError if it is in predictions.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    index = device.index or 0
    for (slot_device, _, _), slots in list(_slots.items()):
        if slot_device == index:
            fault = slots.take()
            if fault is not None:
                raise fault.error(_message(fault, slots, when))


def _message(fault: Fault, slots: FaultSlots, when: str) -> str:
    place = fault.place(slots.layers, slots.images)
    reason = _REASONS.get(fault.status, str(fault.status))
    return f"{place} {reason} (found by the GPU{when})"


def _print_pending() -> None:
    """Print the faults that no call has raised, as far as the GPU has reported them: the end of a
    process waits for nothing, and nothing here calls CUDA."""
    when = " in an earlier call, and raised by none"
    with contextlib.suppress(Exception):  # such as a closed stderr
        for slots in list(_slots.values()):
            if slots.process == os.getpid() and (fault := slots.take()) is not None:
                message = _message(fault, slots, when)
                print(f"detr-fast: warning: {message}", file=sys.stderr)


def check_faults(device: torch.device | str | int | None = None) -> None:
    """Wait for a GPU, then raise the first fault that it found in the input of a matching.

    By default, FastMatcher does not wait for CUDA tensors: a problem with bad labels, boxes or
    logits gets no match, and a later call raises the error once the GPU has reported it. This
    function raises it now. Call it where a training loop waits for the GPU anyway, to log.

    Args:
        device: a CUDA device, by default the current one. For any other device this does nothing.

    Raises:
        ValueError: names the layer, image and entry of the first fault; PredictionError if it is
            in predictions.
    """
    if not torch.cuda.is_available():
        return
    device = torch.device("cuda" if device is None else device)
    if device.type != "cuda":
        return
    torch.cuda.synchronize(device)
    raise_pending(device, when="")


_OF_PREDICTIONS = (_C.Status.invalid_logits, _C.Status.invalid_box)
_REASONS = {
    _C.Status.invalid_label: "is not one of the classes of the logits",
    _C.Status.invalid_target_box: "must be finite, and its width and height not negative",
    _C.Status.invalid_logits: "has no class cost: it holds NaN or, with softmax, inf or only -inf",
    _C.Status.invalid_box: "must be finite, and its width and height not negative",
    _C.Status.invalid_pair_cost: "overflows",
}
