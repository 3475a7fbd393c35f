"""The build: what the compiled module links, and what setup.py says when it cannot build."""

import importlib.metadata
import importlib.util
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


def test_code_for_new_cpus_is_not_shared_with_old_ones():
    """What is compiled once per instruction set has no function that the linker may choose one of
    several copies of: it could choose one that this CPU cannot run."""
    objects = sorted((ROOT / "build").glob("cmake-*/CMakeFiles/simd_*.dir/cpu/**/*.o"))
    nm = shutil.which("nm")
    if not objects or nm is None:
        pytest.skip("no object files of a build here, or no nm")
    symbols = subprocess.run(
        [nm, "--defined-only", *map(str, objects)], capture_output=True, text=True, check=True
    ).stdout
    assert " T " in symbols or " D " in symbols  # nm did look
    assert not [line for line in symbols.splitlines() if line[16:19] in (" W ", " V ", " u ")]


def test_module_works_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('_C', {_C.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "import numpy as np\n"
        "cost = np.array([[4.0, 1.0], [2.0, 3.0]])\n"
        "fault, index = module.linear_sum_assignment(cost, False, 1)\n"
        "print(fault, *(one.tolist() for one in index))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "None [0, 1] [1, 0]", done.stderr


@pytest.mark.parametrize("name", ["DETR_FAST_SIMD", "DETR_FAST_THREADS"])
def test_a_switch_that_does_not_exist_is_an_error(name, tmp_path):
    """A measurement of what was not asked for would look like any other."""
    done = subprocess.run(
        [sys.executable, "-c", "import detr_fast"],
        cwd=tmp_path,
        env={**os.environ, name: "AVX2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and f"{name} is 'AVX2', expected one of " in done.stderr


def test_type_checkers_find_the_hints():
    """They read those of packages that say so; and of a compiled module only a stub."""
    folder = Path(detr_fast.__file__).parent
    assert (folder / "py.typed").exists() and (folder / "_C.pyi").exists()


def test_version_has_one_source():
    assert importlib.metadata.version("detr-fast") == detr_fast.__version__


def test_importing_touches_no_gpu(tmp_path):
    code = "import detr_fast, torch; print(torch.cuda.is_initialized())"
    # Elsewhere than in the checkout, whose folder Python would import before what is installed.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


READ = ("CXX", "CXXFLAGS", "CUDA_HOME", "CUDA_PATH", "CUDAHOSTCXX", "TORCH_CUDA_ARCH_LIST")


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess:
    keep = {k: v for k, v in os.environ.items() if k not in (*READ, "DETR_FAST_CUDA", "CMAKE_ARGS")}
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
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tmp_path)
    script = (ROOT / "setup.py").read_text()  # this machine may have a toolkit in the usual place
    assert 'USUAL_CUDA = "/usr/local/cuda"' in script
    script = script.replace('"/usr/local/cuda"', repr(str(tmp_path / "usual")))
    (tmp_path / "setup.py").write_text(script)
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


def path_without_nvcc(folder: Path) -> str:
    """A PATH with the C++ compiler alone."""
    folder.mkdir()
    for name in ("c++", "as", "ld"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


def fake_nvcc(home: Path, compiles: str) -> Path:
    """A toolkit that lists two architectures, and whose compilation is the given shell command."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    listing = "echo compute_80; echo compute_120"
    nvcc.write_text(
        f'#!/bin/sh\nif [ "$1" = --list-gpu-arch ]; then {listing}; exit 0; fi\n{compiles}\n'
    )
    nvcc.chmod(0o755)
    return nvcc


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="CUDA is built on Linux only")


@linux_only
def test_cuda_demanded_without_nvcc_gives_one_line(tree, tmp_path):
    done = build(tree, DETR_FAST_CUDA="1", PATH=path_without_nvcc(tmp_path / "bin"))
    assert_one_line(done, "DETR_FAST_CUDA=1, but there is no nvcc", "CUDA_HOME")


@linux_only
@pytest.mark.parametrize("forced", ["", "1"])
def test_nvcc_that_fails_gives_one_line(tree, tmp_path, forced):
    complaint = "echo In file included >&2; echo '#error -- unsupported GNU version!' >&2; exit 1"
    nvcc = fake_nvcc(tmp_path / "cuda", complaint)
    done = build(tree, DETR_FAST_CUDA=forced, CUDA_HOME=str(tmp_path / "cuda"))
    assert_one_line(done, str(nvcc), "#error -- unsupported GNU version!", "DETR_FAST_CUDA=0")


@linux_only
def test_cuda_home_without_nvcc_gives_one_line(tree, tmp_path):
    done = build(tree, CUDA_HOME=str(tmp_path))
    assert_one_line(done, f"CUDA_HOME={tmp_path} has no bin/nvcc", "DETR_FAST_CUDA=0")


@linux_only
@pytest.mark.parametrize("case", ["switched off", "no nvcc", "nvcc", "nvcc not on PATH"])
def test_the_decision_about_cuda_is_printed(tree, tmp_path, case):
    (tree / "csrc" / "CMakeLists.txt").write_text("message(FATAL_ERROR enough)\n")
    nvcc = fake_nvcc(tmp_path / "cuda", "exit 0")
    without = {"PATH": path_without_nvcc(tmp_path / "bin")}
    usual = fake_nvcc(tmp_path / "usual", "exit 0") if case == "nvcc not on PATH" else None
    given, expected = {
        "switched off": (
            {"DETR_FAST_CUDA": "0", "CUDA_HOME": str(tmp_path / "cuda")},
            "off: DETR_FAST_CUDA=0",
        ),
        "no nvcc": (without, "off: there is no nvcc"),
        "nvcc not on PATH": (
            without,
            f"on: {usual} (the usual place); architectures 8.0 12.0+PTX (default)",
        ),
        "nvcc": (
            {"CUDA_HOME": str(tmp_path / "cuda")},
            f"on: {nvcc} (from CUDA_HOME); architectures 8.0 12.0+PTX (default)",
        ),
    }[case]
    done = build(tree, **given)
    said = [line for line in done.stdout.splitlines() if line.startswith("detr_fast: CUDA: ")]
    assert len(said) == 1, done.stdout + done.stderr
    assert said[0].startswith(f"detr_fast: CUDA: {expected}")


def test_wrong_switch_gives_one_line(tree):
    assert_one_line(build(tree, DETR_FAST_CUDA="yes"), "DETR_FAST_CUDA=yes, expected 1, 0")


@pytest.fixture
def setup_script(tree, monkeypatch):
    """setup.py as a module: its decisions without its build."""
    for name in (*READ, "DETR_FAST_CUDA"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("setup_script", tree / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SUPPORTED = ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0", "12.1"]


@pytest.mark.parametrize(
    ("wanted", "supported", "expected"),
    [
        ("", SUPPORTED, ("7.5", "8.0", "9.0", "10.0", "12.0+PTX")),
        ("  ", ["7.0", "7.5", "8.0", "8.6", "8.9", "9.0"], ("7.0", "7.5", "8.0", "9.0+PTX")),
        ("8.0;9.0+PTX", SUPPORTED, ("8.0", "9.0+PTX")),
        (" 8.6 9.0a\t12.1+PTX; ", SUPPORTED, ("8.6", "9.0a", "12.1+PTX")),
        ("9.0 9.0", SUPPORTED, ("9.0",)),
    ],
)
def test_architectures(setup_script, wanted, supported, expected):
    chosen, words = setup_script.choose_architectures(wanted, supported, "nvcc")
    assert chosen == expected
    assert words.startswith(" ".join(expected))


@pytest.mark.parametrize(
    ("wanted", "supported", "message"),
    [
        (
            "7.0 8.0",
            SUPPORTED,
            r"TORCH_CUDA_ARCH_LIST has 7\.0, but nvcc knows only 7\.5 8",
        ),
        ("sm_90", SUPPORTED, "'sm_90' is not of the form 9.0"),
        ("9.0+ptx", SUPPORTED, "is not of the form"),
        ("", ["3.5"], "knows none of 7.0"),
    ],
)
def test_architectures_that_cannot_be(setup_script, wanted, supported, message):
    with pytest.raises(SystemExit, match=message):
        setup_script.choose_architectures(wanted, supported, "nvcc")


@linux_only
def test_cuda_is_built_where_there_is_nvcc(setup_script, tmp_path, monkeypatch):
    nvcc = fake_nvcc(tmp_path / "cuda", "exit 0")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # whether there is a GPU decides nothing
    cuda = setup_script.decide_cuda("ccache g++-12")
    assert cuda.nvcc == str(nvcc)
    assert cuda.host == "g++-12"
    assert cuda.architectures == ("8.0", "12.0+PTX")
    assert "from CUDA_PATH" in cuda.reason and "8.0 12.0+PTX (default)" in cuda.reason
    monkeypatch.setenv("DETR_FAST_CUDA", "0")
    assert setup_script.decide_cuda("g++") == setup_script.Cuda("off: DETR_FAST_CUDA=0")
    monkeypatch.setenv("DETR_FAST_CUDA", "")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux only" in setup_script.decide_cuda("c++").reason


def test_torch_is_not_imported(setup_script):
    code = "import sys; sys.modules['torch'] = None; import setup"
    done = subprocess.run([sys.executable, "-c", code], cwd=setup_script.ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_module_exports_nothing_of_the_cuda_runtime():
    """Torch has its own in the same process."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm on this system")
    command = [nm, "--dynamic", "--defined-only", _C.__file__]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "PyInit__C" in listed
    assert "cuda" not in listed


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
