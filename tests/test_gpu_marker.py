"""Every test of a GPU has the marker by which a machine that has one finds them all."""

import os
import re
import subprocess
import sys
from pathlib import Path

import devices
import pytest
import torch

TESTS = Path(__file__).parent
# Without "cuda" in their names but for the parameter.
FOUND_BY_MARKER_ALONE = [
    "test_losses.py::test_on_a_gpu_without_a_wait",
    "test_losses.py::test_graph_of_criterion_and_backward",
    "test_box_losses.py::test_side_stream_without_a_wait",
    "test_box_losses.py::test_graph_capture",
    "test_box_losses.py::test_one_kernel_each",
    "test_box_iou.py::test_side_stream_without_a_wait",
    "test_box_iou.py::test_equals_torchvision",
    "test_loader.py::TestPrefetcher::test_batches_of_a_gpu_without_a_wait",
    "test_loader.py::TestDeviceDecoder::test_gives_what_the_loader_gives",
    "test_interop_cuda.py::test_on_a_gpu",
    "test_cuda.py::test_on_another_device",
    "test_train_step_cuda.py::test_cuda_step_does_not_wait",
]


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> str:
    """What pytest collects with the marker on a machine that lacks pycocotools."""
    missing = tmp_path_factory.mktemp("missing")
    (missing / "pycocotools.py").write_text('raise ModuleNotFoundError("No pycocotools here")')
    paths = [str(missing), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "gpu", str(TESTS)],
        cwd=missing,  # not the checkout: its detr_fast may not be the installed one
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_marker_selects_the_tests_of_a_gpu_and_no_others(collected) -> None:
    found = set(re.findall(r"(test_\w+\.py::[\w:]+)", collected))
    assert set(FOUND_BY_MARKER_ALONE) <= found
    assert not re.search(r"[\[-]cpu[]-]", collected)


@pytest.mark.parametrize("path", sorted(TESTS.glob("test_*.py")), ids=lambda path: path.stem)
def test_no_test_skips_by_itself_for_want_of_a_gpu(path) -> None:
    by_itself = r"not torch\.cuda\.is_available\(\)|torch\.cuda\.device_count\(\)"
    if path != Path(__file__):
        assert not re.search(by_itself, path.read_text()), "use devices.needs_cuda"


def test_why_tests_of_a_gpu_are_skipped(monkeypatch) -> None:
    monkeypatch.setattr(devices, "_C", type("Built", (), {"cuda_version": "13.0"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.why_not_here() is None
    assert devices.why_not_here(count=2) == "needs 2 GPUs"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.why_not_here() == "needs a GPU"
    devices._C.cuda_version = None
    assert "a build with CUDA kernels" in devices.why_not_here()


def test_the_marker_is_what_skips(request) -> None:
    reasons = {devices.why_not_here(), devices.why_not_here(count=2)} - {None}
    for item in request.session.items:
        skipped = [mark.kwargs.get("reason") for mark in item.iter_markers("skip")]
        expected = [devices.why_not_here(**mark.kwargs) for mark in item.iter_markers("gpu")]
        assert set(skipped) & reasons == set(expected) - {None}
