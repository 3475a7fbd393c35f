"""``python -m detr_fast.info``, and the table of the kernels' registers in CI."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import detr_fast
from detr_fast import _C, info

ROOT = Path(__file__).resolve().parents[1]


def test_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "detr_fast.info"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for part in (f"detr_fast {detr_fast.__version__}", _C.compiler, _C.simd(), _C.cuda_reason):
        assert part in done.stdout
    entries = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert len(entries) > 9
    assert len({re.match(r"  \S.*?  +", line).end() for line in entries}) == 1  # aligned


def test_says_what_was_built():
    report = info.report()
    if _C.cuda_version:
        assert f"{_C.cuda_version}, {_C.cuda_compiler}, code for {_C.cuda_architectures}" in report
        assert _C.cuda_reason.startswith("on: ")
    else:
        assert "not built" in report
        assert not hasattr(_C, "cuda")
    for op in info.OPS:
        assert callable(getattr(_C, op))


def section(title: str) -> dict[str, str]:
    """The entries under a title of the report."""
    _, _, below = info.report().partition(f"\n{title}\n")
    entries = re.match(r"(  .*\n?)+", below)[0].splitlines()
    return dict(re.split(r"  +", entry.strip(), maxsplit=1) for entry in entries)


@pytest.fixture
def built(monkeypatch):
    """Makes it a build with CUDA kernels, whose driver runs so new a CUDA, or one without."""

    def build(cuda: bool, driver: int = 0) -> None:
        monkeypatch.setattr(_C, "cuda_version", "13.0" if cuda else None)
        monkeypatch.setattr(_C, "cuda_architectures", "8.0" if cuda else "")
        monkeypatch.delattr(_C, "cuda", raising=False)
        if cuda:
            ops = SimpleNamespace(driver_version=lambda: driver, **dict.fromkeys(info.OPS))
            monkeypatch.setattr(_C, "cuda", ops, raising=False)

    return build


def test_forms_of_the_ops(built):
    built(cuda=True)
    assert section("compiled ops") == dict.fromkeys(info.OPS, "CPU, CUDA")
    del _C.cuda.box_iou
    found = section("compiled ops")
    assert {op for op, forms in found.items() if forms == "CPU"} == {"box_iou"}
    built(cuda=False)
    assert section("compiled ops") == dict.fromkeys(info.OPS, "CPU")


@pytest.mark.parametrize("cuda", [False, True])
def test_without_a_gpu_the_report_says_so(built, monkeypatch, cuda):
    built(cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(info.Path, "is_file", lambda path: False)  # the driver's
    assert section("NVIDIA") == {"driver": "none", "devices": "none that torch can use"}
    built(cuda, driver=12080)
    assert section("NVIDIA")["driver"].endswith("runs CUDA up to 12.8" if cuda else "none")


@pytest.mark.parametrize(
    ("cuda", "capability", "expected"),
    [
        (True, (8, 6), "code for 8.0"),
        (True, (9, 0), "NO CODE: rebuild with TORCH_CUDA_ARCH_LIST=9.0"),
        (False, (9, 0), "no CUDA code was built"),
    ],
)
def test_each_device_is_listed_with_its_code(built, monkeypatch, cuda, capability, expected):
    built(cuda)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "get_device_capability": capability,
        "get_device_name": "NVIDIA X",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    found = section("NVIDIA")
    assert set(found) == {"driver", "cuda:0", "cuda:1"}
    number = ".".join(map(str, capability))
    assert found["cuda:1"] == f"NVIDIA X, compute capability {number}: {expected}"


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((8, 0), "8.0 9.0+PTX", "code for 8.0"),
        ((8, 6), "8.0 9.0+PTX", "code for 8.0"),
        ((8, 6), "8.0 8.6 9.0+PTX", "code for 8.6"),
        ((9, 0), "8.0 9.0+PTX", "code for 9.0"),
        ((12, 0), "8.0 9.0+PTX", "PTX for 9.0, compiled when first loaded"),
        ((7, 5), "8.0 9.0+PTX", None),
        ((12, 0), "8.0 9.0", None),
        ((8, 0), "8.6", None),
        ((9, 0), "9.0a", "code for 9.0a"),
        ((10, 3), "10.0a+PTX", None),
        ((10, 3), "10.0f", "code for 10.0f"),
        ((9, 0), "", None),
    ],
)
def test_code_for(capability, architectures, expected):
    assert info.code_for(capability, architectures) == expected


LOG = """
ptxas info    : 0 bytes gmem
  ptxas info    : Compiling entry function '_ZN1n4goodIfLi32EEEvPT_' for 'sm_90'
  ptxas info    : Function properties for _ZN1n4goodIfLi32EEEvPT_
      0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
  ptxas info    : Used 12 registers, used 1 barriers, 128 bytes smem
"""
SPILLING = """
ptxas info    : Compiling entry function '_ZN1n12_GLOBAL__N_13badEPfi' for 'sm_80'
ptxas info    : Function properties for _ZN1n12_GLOBAL__N_13badEPfi
    288 bytes stack frame, 556 bytes spill stores, 600 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 288 bytes cumulative stack size
"""


@pytest.mark.parametrize(
    ("log", "status", "parts"),
    [
        (LOG, 0, ["sm_90", " 12 ", " 128 "]),
        (LOG + SPILLING, 1, ["sm_80", "1156", "1 of 2 spill"]),
        ("", 1, ["no line of ptxas"]),
    ],
)
def test_kernel_table(log, status, parts, tmp_path, capsys):
    script = ROOT / ".ci" / "kernels.py"
    if not script.is_file():
        pytest.skip("not run from a source tree")
    spec = importlib.util.spec_from_file_location("kernels", script)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    (tmp_path / "log").write_text(log)
    assert kernels.main(str(tmp_path / "log")) == status
    printed = capsys.readouterr().out
    for part in parts:
        assert part in printed
    assert kernels._short("void detr_fast::f<float, (int)32>(float const*, n::g<int>)") == (
        "f<float, 32>"
    )
