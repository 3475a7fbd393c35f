"""What a GPU found in the input: from the slots that it writes to an error with the place."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from detr_fast import _C, FastMatcher, PredictionError, faults
from detr_fast.faults import FaultSlots, fault_slots, raise_pending

CPU = torch.device("cpu")
Status = _C.Status


@pytest.fixture(autouse=True)
def no_slots(monkeypatch):
    monkeypatch.setattr(faults, "_slots", {})


def code(status, query: int = -1, target: int = -1) -> int:
    """As ``encode_fault`` of team_match.h."""
    return int(status) << 56 | (query + 1) << 28 | (target + 1)


@pytest.mark.parametrize(
    ("problem", "fault", "message"),
    [
        (4, (Status.invalid_label, -1, 7), "targets[1]['labels'][7] is not one of the classes"),
        (2, (Status.invalid_target_box, -1, 0), "targets[2]['boxes'][0] must be finite, and its"),
        (5, (Status.invalid_logits, 99, -1), "layers[1]['pred_logits'][2, 99] has no class cost"),
        (0, (Status.invalid_box, 0, -1), "layers[0]['pred_boxes'][0, 0] must be finite, and its"),
        (
            3,
            (Status.invalid_pair_cost, 8, 9),
            "the cost of matching layers[1]['pred_boxes'][0, 8] to targets[0]['boxes'][9] o",
        ),
        (1, (Status.invalid_box, 2**28 - 2, -1), "layers[0]['pred_boxes'][1, 268435454] must be"),
    ],
)
def test_place(problem, fault, message):
    fault_slots(CPU, layers=2, images=3)._numbers[problem] = code(*fault)
    with pytest.raises(ValueError) as raised:
        raise_pending(CPU)
    assert str(raised.value).startswith(message)
    assert str(raised.value).endswith("(found by the GPU in an earlier call)")
    of_predictions = fault[0] in (Status.invalid_logits, Status.invalid_box)
    assert type(raised.value) is (PredictionError if of_predictions else ValueError)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda outputs, _: outputs["pred_logits"][0, 1].fill_(torch.nan), PredictionError),
        (lambda outputs, _: outputs["pred_boxes"][0, 2].fill_(-1.0), PredictionError),
        (lambda outputs, _: outputs["pred_boxes"][0, 2].fill_(8e37), ValueError),
        (lambda _, targets: targets[0]["labels"].fill_(2), ValueError),
        (lambda _, targets: targets[0]["boxes"].fill_(torch.inf), ValueError),
        (lambda outputs, _: outputs.pop("pred_boxes"), ValueError),
    ],
)
def test_on_the_cpu_an_error_tells_predictions_from_the_rest(spoil, kind):
    outputs = {"pred_logits": torch.zeros(1, 4, 3), "pred_boxes": torch.full((1, 4, 4), 0.5)}
    targets = [{"labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.5)}]
    FastMatcher()(outputs, targets)
    spoil(outputs, targets)
    with pytest.raises(ValueError) as raised:
        FastMatcher()(outputs, targets)
    assert type(raised.value) is kind


def test_default_device_does_not_matter():
    with torch.device("meta"):
        assert fault_slots(CPU, layers=2, images=3).take() is None


def test_one_layer_is_called_outputs():
    fault_slots(CPU, layers=1, images=3)._numbers[2] = code(Status.invalid_box, 5)
    with pytest.raises(ValueError, match=r"^outputs\['pred_boxes'\]\[2, 5\] must be"):
        raise_pending(CPU)


def test_raised_once_and_on_its_device():
    slots = faults._slots[1, 1, 2] = FaultSlots(layers=1, images=2, pinned=False)
    slots._numbers[:] = code(Status.invalid_box, 5)
    raise_pending(torch.device("cuda", 0))
    with pytest.raises(ValueError, match=r"\[0, 5\]"):
        raise_pending(torch.device("cuda", 1))
    raise_pending(torch.device("cuda", 1))


def test_a_fault_written_while_another_is_read_is_not_lost():
    class Written(np.ndarray):
        def nonzero(self):
            found = super().nonzero()
            self[3] = code(Status.invalid_box, 8)  # by the device, just now
            return found

    slots = fault_slots(CPU, layers=1, images=4)
    slots._numbers = slots._numbers.view(Written)
    slots._numbers[1] = code(Status.invalid_box, 5)
    for place in ("1, 5", "3, 8"):
        with pytest.raises(ValueError, match=rf"\[{place}\]"):
            raise_pending(CPU)


AT_EXIT = f"""
import atexit, os, sys
import torch
from detr_fast import faults

def refuse(*_): raise AssertionError("CUDA is called")
for name in ("_lazy_init", "synchronize", "current_device", "is_available"):
    setattr(torch.cuda, name, refuse)
atexit.register(lambda: print("all handlers ran"))  # after those that are registered later
for layers, images in ((1, 3), (2, 2), (6, 2)):
    faults.fault_slots(torch.device("cpu"), layers, images)
faults._slots[0, 1, 3]._numbers[2] = {code(Status.invalid_box, 5)}
faults._slots[0, 6, 2]._numbers[5] = {code(Status.invalid_logits, 9)}
"""
IN_THE_END = (
    "detr-fast: warning: outputs['pred_boxes'][2, 5] must be finite, and its width and height not "
    "negative (found by the GPU in an earlier call, and raised by none)\n"
    "detr-fast: warning: layers[2]['pred_logits'][1, 9] has no class cost: it holds NaN or, with "
    "softmax, inf or only -inf (found by the GPU in an earlier call, and raised by none)\n"
)


@pytest.mark.parametrize(
    ("then", "printed"),
    [
        ("", IN_THE_END),
        ("sys.exit(0)", IN_THE_END),
        ("os.fork() or sys.exit(0)\nos.wait()", IN_THE_END),  # by the parent alone
        ("sys.stderr.close()", ""),
        ("sys.stderr = None", ""),
        ("for slots in faults._slots.values(): slots.take()", ""),
    ],
    ids=["end", "exit", "fork", "closed", "none", "read"],
)
def test_what_nobody_read_is_printed_when_the_process_ends(tmp_path, then, printed):
    if "fork" in then and sys.platform == "win32":
        pytest.skip("Windows has no fork")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AT_EXIT + then],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, printed)
    assert "all handlers ran" in done.stdout
