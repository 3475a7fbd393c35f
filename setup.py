"""Build detr_fast._C with CMake and Ninja; everything else is in pyproject.toml.

Torch is neither imported nor linked, so one build serves every torch version. Environment:

CXX                   the C++ compiler
MAX_JOBS              how many files to compile at once; default: one per core
DETR_FAST_CUDA        1 requires CUDA, 0 omits it; unset: CUDA is built if nvcc is found
CUDA_HOME, CUDA_PATH  where to look for nvcc, before PATH and /usr/local/cuda
CUDAHOSTCXX           nvcc's host compiler; default: the C++ compiler
TORCH_CUDA_ARCH_LIST  architectures to compile kernels for, "8.0;9.0+PTX"; default: ARCHITECTURES
CMAKE_ARGS            further arguments to CMake
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"


def say(text: str) -> None:
    print(f"detr_fast: {text}", flush=True)


def stop(text: str) -> NoReturn:
    """End the build with a one-line message instead of a traceback."""
    raise SystemExit(f"detr_fast: {text}")


def find_compiler() -> str:
    """Return the C++ compiler's command line, after a check that it compiles C++17."""
    cxx = os.environ.get("CXX")
    names = [cxx] if cxx else ["c++", "g++", "clang++"]
    command = next((name for name in names if shutil.which(shlex.split(name)[0])), None)
    if command is None:
        missing = f"CXX={cxx} does not exist" if cxx else "none of c++, g++, clang++ found"
        stop(
            f"no C++ compiler: {missing}. Install one (Debian and Ubuntu: apt install g++; "
            "macOS: xcode-select --install) or set CXX to its path."
        )
    flags = shlex.split(os.environ.get("CXXFLAGS", ""))
    probe = [*shlex.split(command), *flags, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    source = "#include <vector>\nstd::vector<int> v;\n"
    result = subprocess.run(probe, input=source, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[0]
        stop(f"the C++ compiler {command} cannot compile C++17: {reason}")
    return command


# One for each generation: its code runs on all GPUs with the same major version that are not older.
# For the newest that nvcc supports, PTX is included: later GPUs compile it when they first load it.
ARCHITECTURES = ("7.0", "7.5", "8.0", "9.0", "10.0", "12.0")


class Cuda(NamedTuple):
    """What to build for CUDA, and why; an empty ``nvcc`` means nothing."""

    reason: str
    nvcc: str = ""
    host: str = ""  # its host compiler
    architectures: tuple[str, ...] = ()  # "8.0", "9.0+PTX"


def decide_cuda(compiler: str) -> Cuda:
    """Decide whether to build for CUDA. Whether a GPU is present does not matter."""
    switch = os.environ.get("DETR_FAST_CUDA", "")
    if switch not in ("", "0", "1"):
        stop(f"DETR_FAST_CUDA={switch}, expected 1, 0 or nothing")
    if switch == "0":
        return Cuda("off: DETR_FAST_CUDA=0")
    if sys.platform != "linux":
        nvcc, origin = "", f"CUDA is built on Linux only, and this is {sys.platform}"
    else:
        nvcc, origin = find_nvcc()
    if not nvcc:
        if switch == "1":
            stop(f"DETR_FAST_CUDA=1, but {origin}")
        return Cuda(f"off: {origin}")
    architectures, choice = choose_architectures(
        os.environ.get("TORCH_CUDA_ARCH_LIST", ""), nvcc_architectures(nvcc), nvcc
    )
    host = os.environ.get("CUDAHOSTCXX") or host_compiler(compiler)
    probe_nvcc(nvcc, host, architectures[0])
    return Cuda(f"on: {nvcc} {origin}; architectures {choice}", nvcc, host, architectures)


USUAL_CUDA = "/usr/local/cuda"  # where NVIDIA's installers put the toolkit, without adding to PATH


def find_nvcc() -> tuple[str, str]:
    """Return the path of nvcc ("" if none), and where it was found or why it was not."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            nvcc = shutil.which("nvcc", path=os.path.join(home, "bin"))
            if nvcc is None:
                stop(f"{name}={home} has no bin/nvcc: correct or unset it, or set DETR_FAST_CUDA=0")
            return nvcc, f"(from {name})"
    if nvcc := shutil.which("nvcc"):
        return nvcc, "(on PATH)"
    if nvcc := shutil.which("nvcc", path=os.path.join(USUAL_CUDA, "bin")):
        return nvcc, "(the usual place)"
    return "", "there is no nvcc: set CUDA_HOME to its toolkit"


def nvcc_architectures(nvcc: str) -> list[str]:
    """Return the compute capabilities that this nvcc supports, oldest first: "9.0", "12.0"."""
    result = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    numbers = sorted(int(number) for number in re.findall(r"compute_(\d+)\b", result.stdout))
    if result.returncode or not numbers:
        stop(
            f"{nvcc} --list-gpu-arch fails: {reason_of(result)}. "
            "Set DETR_FAST_CUDA=0 to build without CUDA."
        )
    return [f"{number // 10}.{number % 10}" for number in numbers]


def choose_architectures(
    arch_list: str,  # TORCH_CUDA_ARCH_LIST
    supported: Sequence[str],  # by nvcc, oldest first
    nvcc: str,
) -> tuple[tuple[str, ...], str]:
    """Return the architectures to build, and a description of the choice."""
    if not arch_list.strip(" ;"):
        defaults = [name for name in ARCHITECTURES if name in supported]
        if not defaults:
            stop(f"{nvcc} knows none of {' '.join(ARCHITECTURES)}: set TORCH_CUDA_ARCH_LIST")
        defaults[-1] += "+PTX"
        return tuple(defaults), f"{' '.join(defaults)} (default)"
    names = tuple(dict.fromkeys(re.split(r"[;\s]+", arch_list.strip("; "))))
    for name in names:
        if not (match := re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", name)):
            stop(f"TORCH_CUDA_ARCH_LIST: {name!r} is not of the form 9.0 or 9.0+PTX")
        if match[1] not in supported:
            stop(f"TORCH_CUDA_ARCH_LIST has {name}, but {nvcc} knows only {' '.join(supported)}")
    return names, f"{' '.join(names)} (TORCH_CUDA_ARCH_LIST)"


def host_compiler(compiler: str) -> str:
    """Return the compiler without a launcher before it: nvcc accepts a program, not a command."""
    launchers = ("ccache", "sccache", "distcc", "icecc")
    words = shlex.split(compiler)
    return next((word for word in words if os.path.basename(word) not in launchers), words[0])


def probe_nvcc(nvcc: str, host: str, architecture: str) -> None:
    """Stop the build unless nvcc compiles a kernel: it rejects host compilers that are too new."""
    source = "#include <vector>\n#include <cuda_runtime.h>\n__global__ void f(int* x) { *x = 1; }\n"
    number = architecture.removesuffix("+PTX").replace(".", "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.cu")
        path.write_text(source)
        flags = ["-std=c++17", "-ccbin", host, f"-arch=sm_{number}", "-c", "-o", f"{path}.o"]
        result = subprocess.run([nvcc, *flags, str(path)], capture_output=True, text=True)
    if result.returncode:
        stop(
            f"{nvcc} with host compiler {host} fails: {reason_of(result)}. Set CUDAHOSTCXX to a "
            "compiler that it supports, or DETR_FAST_CUDA=0 to build without CUDA."
        )


def reason_of(result: subprocess.CompletedProcess) -> str:
    """Return the first output line that contains "error", or else the first line."""
    lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), (lines or ["no message"])[0])


def tool(name: str) -> str:
    """Return the path of cmake or ninja, looking first beside this Python, then on PATH."""
    search_path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    path = shutil.which(name, path=search_path)
    if path is None:
        stop(f"{name} not found: pip install {name}, or do not disable build isolation.")
    return path


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        jobs = os.environ.get("MAX_JOBS")
        compiler = find_compiler()
        cuda = decide_cuda(compiler)
        say(f"C++ compiler: {compiler}; jobs: {jobs or 'all cores'}")
        say(f"CUDA: {cuda.reason}")

        try:
            import pybind11
        except ImportError:
            stop("pybind11 not found: pip install pybind11, or do not disable build isolation.")

        # Configure from scratch each time, since the last run's cmake, ninja and pybind11 may have
        # been in a build environment that is now deleted. Object files are kept: only what changed
        # is compiled again.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            tool("cmake"),
            *("-S", str(CSRC), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDETR_FAST_CUDA_REASON={cuda.reason}",
        ]
        if cuda.nvcc:
            configure += [
                "-DDETR_FAST_CUDA=ON",
                f"-DDETR_FAST_CUDA_ARCHITECTURES={' '.join(cuda.architectures)}",
                f"-DCMAKE_CUDA_COMPILER={cuda.nvcc}",
                f"-DCMAKE_CUDA_HOST_COMPILER={cuda.host}",
            ]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        compile_ = [tool("cmake"), "--build", str(build)]
        if jobs:
            compile_ += ["--parallel", jobs]
        # CMake takes the compiler from CXX, which may hold several words ("ccache g++").
        environment = {**os.environ, "CXX": compiler}
        for command in (configure, compile_):
            if subprocess.run(command, env=environment).returncode:
                stop(f"the build failed; see the output above ({shlex.join(command)})")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(next(build.glob(f"_C*{target.suffix}")), target)


def main() -> None:
    if os.name == "nt":
        stop("Windows is not supported: use WSL")
    if int(setuptools.__version__.split(".")[0]) < 77:
        stop(f"setuptools {setuptools.__version__} is too old: pip install 'setuptools>=77'.")
    # setuptools compiles no sources; `depends` adds them to the source distribution.
    sources = sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob("*") if path.is_file())
    setup(
        ext_modules=[Extension("detr_fast._C", sources=[], depends=sources)],
        cmdclass={"build_ext": CMakeBuild},
    )


if __name__ == "__main__":
    main()
