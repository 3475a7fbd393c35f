"""The build: what the compiled module links, and what setup.py says when it cannot build."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import detr_fast
from detr_fast import _C

ROOT = Path(__file__).resolve().parents[1]


def test_module_links_neither_torch_nor_cuda():
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("no ldd on this system")
    linked = subprocess.run([ldd, _C.__file__], capture_output=True, text=True, check=True).stdout
    assert "libc." in linked  # ldd did look
    for library in ("torch", "c10", "cudart", "libcuda"):
        assert library not in linked


def test_module_was_compiled_without_torch_headers():
    contents = Path(_C.__file__).read_bytes()
    assert b"linear_sum_assignment" in contents
    for symbol in (b"N2at6Tensor", b"N3c10", b"THPVariable"):
        assert symbol not in contents


def test_module_works_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('_C', {_C.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "import numpy as np\n"
        "cost = np.array([[4.0, 1.0], [2.0, 3.0]]); index = np.empty((2, 2), np.int64)\n"
        "problems = np.array([[cost.ctypes.data, 2, 2]])\n"
        "module.linear_sum_assignment(problems, True, False, index, 1)\n"
        "print(index.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[[0, 1], [1, 0]]", done.stderr


def test_version_has_one_source():
    assert importlib.metadata.version("detr-fast") == detr_fast.__version__


def test_importing_touches_no_gpu(tmp_path):
    code = "import detr_fast, torch; print(torch.cuda.is_initialized())"
    # Elsewhere than in the checkout, whose folder Python would import before what is installed.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess:
    keep = {k: v for k, v in os.environ.items() if k not in ("CXX", "CXXFLAGS", "DETR_FAST_CUDA")}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env={**keep, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def tree(tmp_path):
    """A copy of what the build reads, so that nothing here is written to."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("not run from a source tree")
    version = importlib.metadata.version("setuptools")
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"setuptools {version} is too old to run setup.py")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "detr_fast").mkdir()
    shutil.copy(ROOT / "detr_fast" / "__init__.py", tmp_path / "detr_fast")
    return tmp_path


def assert_one_line(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode != 0
    everything = done.stdout + done.stderr
    assert "Traceback" not in everything and "CMake" not in everything
    (line,) = [line for line in everything.splitlines() if line.startswith("detr_fast: ")]
    for part in parts:
        assert part in line


def test_missing_compiler_gives_one_line(tree):
    done = build(tree, CXX="/nonexistent/g++")
    assert_one_line(done, "no C++ compiler", "CXX=/nonexistent/g++ does not exist", "apt install")


def test_no_compiler_on_path_gives_one_line(tree, tmp_path):
    done = build(tree, PATH=str(tmp_path))
    assert_one_line(done, "no C++ compiler", "none of c++, g++, clang++ found")


def test_broken_compiler_gives_one_line(tree, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no cc1plus here' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert_one_line(build(tree, CXX=str(broken)), str(broken), "no cc1plus here")


def test_cuda_demanded_but_impossible_gives_one_line(tree):
    if list((ROOT / "csrc").glob("cuda/*.cu")):
        pytest.skip("there are CUDA sources")
    assert_one_line(build(tree, DETR_FAST_CUDA="1"), "DETR_FAST_CUDA=1", "no CUDA sources")


def test_the_source_folder_without_a_build_says_so(tmp_path):
    """After an install that is not editable, Python in the checkout imports the source folder."""
    package = tmp_path / "detr_fast"
    package.mkdir()
    shutil.copy(Path(detr_fast.__file__), package / "__init__.py")
    # Without site-packages, where an editable install would find the module after all.
    command = [sys.executable, "-S", "-c", "import detr_fast"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {package} has no compiled module")
