"""Bad input that a GPU found: kept until the host looks, and then raised with its place.

A kernel cannot raise, and the host does not wait for it. So each matching problem has a slot in
page-locked memory, which the device writes and the host reads at no cost: at the next call of a
matcher, and in :func:`check_faults`, which waits for the device first.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch

from detr_fast import _C


class Fault(NamedTuple):
    """As ``_C.match`` returns it."""

    status: _C.Status
    problem: int  # layer * B + image; for a target's label or box the image
    query: int  # -1: none
    target: int


class FaultSlots:
    """One slot per problem of a call with L layers and B images."""

    def __init__(self, layers: int, images: int, pinned: bool) -> None:
        self.layers, self.images = layers, images
        self._memory = torch.zeros(layers * images, dtype=torch.int64, pin_memory=pinned)
        self._numbers = self._memory.numpy()

    @property
    def address(self) -> int:
        return self._memory.data_ptr()

    def take(self) -> Fault | None:
        """The first fault, if there is any; all are forgotten then."""
        if not self._numbers.any():
            return None
        problem = int(self._numbers.nonzero()[0][0])
        code = int(self._numbers[problem])
        self._numbers[:] = 0
        status = _C.Status(code >> 56)
        query, target = (code >> 28) % (1 << 28) - 1, code % (1 << 28) - 1
        if status in (_C.Status.invalid_label, _C.Status.invalid_target_box):
            problem %= self.images
        return Fault(status, problem, query, target)


_slots: dict[tuple[int, int, int], FaultSlots] = {}  # by device index, L, B
_lock = threading.Lock()


def fault_slots(device: torch.device, layers: int, images: int) -> FaultSlots:
    """The slots of calls of this size. They live as long as the process: CUDA graphs hold their
    address."""
    key = (device.index or 0, layers, images)
    found = _slots.get(key)
    if found is None:
        with _lock:
            found = _slots.setdefault(key, FaultSlots(layers, images, pinned=device.type == "cuda"))
    return found


def raise_pending(device: torch.device, when: str = " in an earlier call") -> None:
    """Raises what calls on this device have found so far, without waiting for those under way.

    Raises:
        ValueError: names the place of the first fault.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    index = device.index or 0
    for (slot_device, _, _), slots in list(_slots.items()):
        if slot_device == index:
            fault = slots.take()
            if fault is not None:
                raise ValueError(f"{_describe(fault, slots)} (found by the GPU{when})")


def check_faults(device: torch.device | str | int | None = None) -> None:
    """Waits for a GPU, then raises what it found wrong with the input of a matching.

    FastMatcher on CUDA tensors never waits: bad labels, boxes or logits leave their problem without
    a match, and are reported by the next call that finds the report there. This function looks at
    once. A training loop calls it where it waits for the GPU anyway, to log.

    Args:
        device: a CUDA device, by default the current one. On any other there is nothing to find.

    Raises:
        ValueError: names the layer, image and entry of the first fault.
    """
    if not torch.cuda.is_available():
        return
    device = torch.device("cuda" if device is None else device)
    if device.type != "cuda":
        return
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.synchronize(device)
    raise_pending(device, when="")


_REASONS = {
    _C.Status.invalid_label: "is not one of the classes that the logits have",
    _C.Status.invalid_target_box: "must be finite, and its width and height not negative",
    _C.Status.invalid_logits: "has no class cost: it holds NaN, or for a softmax inf or only -inf",
    _C.Status.invalid_box: "must be finite, and its width and height not negative",
    _C.Status.invalid_pair_cost: "overflow",
}


def _describe(fault: Fault, slots: FaultSlots) -> str:
    reason = _REASONS.get(fault.status, str(fault.status))
    layer, image = divmod(fault.problem, slots.images)
    name = f"layers[{layer}]" if slots.layers > 1 else "outputs"
    if fault.status == _C.Status.invalid_label:
        text = f"targets[{fault.problem}]['labels'][{fault.target}] {reason}"
    elif fault.status == _C.Status.invalid_target_box:
        text = f"targets[{fault.problem}]['boxes'][{fault.target}] {reason}"
    elif fault.status == _C.Status.invalid_logits:
        text = f"{name}['pred_logits'][{image}, {fault.query}] {reason}"
    elif fault.status == _C.Status.invalid_box:
        text = f"{name}['pred_boxes'][{image}, {fault.query}] {reason}"
    else:
        text = (
            f"the costs of matching {name}['pred_boxes'][{image}, {fault.query}] to "
            f"targets[{image}]['boxes'][{fault.target}] {reason}"
        )
    return text
