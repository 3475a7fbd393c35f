"""Builds detr_fast._C with CMake and Ninja; everything else is in pyproject.toml.

Torch is neither imported nor linked, so one build serves every torch version. Environment: CXX
names the compiler, MAX_JOBS caps parallel compilations, DETR_FAST_CUDA=1 demands CUDA.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"


def say(text: str) -> None:
    print(f"detr_fast: {text}", flush=True)


def stop(text: str) -> None:
    """End the build with one line instead of a traceback."""
    raise SystemExit(f"detr_fast: {text}")


def find_compiler() -> str:
    """The C++ compiler's command line, after it has compiled one line of C++17."""
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["c++", "g++", "clang++"]
    command = next((name for name in names if shutil.which(shlex.split(name)[0])), None)
    if command is None:
        missing = f"CXX={wanted} does not exist" if wanted else "none of c++, g++, clang++ found"
        stop(
            f"no C++ compiler: {missing}. Install one (Debian and Ubuntu: apt install g++; "
            "macOS: xcode-select --install) or set CXX to its path."
        )
    flags = shlex.split(os.environ.get("CXXFLAGS", ""))
    probe = [*shlex.split(command), *flags, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    source = "#include <vector>\nstd::vector<int> v;\n"
    done = subprocess.run(probe, input=source, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        stop(f"the C++ compiler {command} cannot compile C++17: {reason}")
    return command


def decide_cuda() -> str:
    """What is built for CUDA, in words. Never decided by whether a GPU is present."""
    if os.environ.get("DETR_FAST_CUDA") == "1":
        stop("DETR_FAST_CUDA=1, but this version has no CUDA sources: unset it.")
    return "off (no CUDA sources yet)"


def tool(name: str) -> str:
    """Path of cmake or ninja: the one installed beside this Python first, then any on PATH."""
    beside = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    path = shutil.which(name, path=beside)
    if path is None:
        stop(f"{name} not found: pip install {name}, or leave build isolation on.")
    return path


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        jobs = os.environ.get("MAX_JOBS")
        compiler, cuda = ("MSVC", "off") if os.name == "nt" else (find_compiler(), decide_cuda())
        say(f"C++ compiler: {compiler}; CUDA: {cuda}; jobs: {jobs or 'all cores'}")

        try:
            import pybind11
        except ImportError:
            stop("pybind11 not found: pip install pybind11, or leave build isolation on.")

        # Configured afresh each time, since the last run's cmake, ninja and pybind11 may have lived
        # in a deleted build environment. Object files stay: only what changed is compiled again.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            tool("cmake"),
            *("-S", str(CSRC), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        compile_ = [tool("cmake"), "--build", str(build)]
        if jobs:
            compile_ += ["--parallel", jobs]
        # CMake takes the compiler from CXX, which may hold several words ("ccache g++").
        environment = os.environ if os.name == "nt" else {**os.environ, "CXX": compiler}
        for command in (configure, compile_):
            if subprocess.run(command, env=environment).returncode:
                stop(f"the build stopped; the lines above say why ({shlex.join(command)})")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(next(build.glob(f"_C*{target.suffix}")), target)


if int(setuptools.__version__.split(".")[0]) < 77:
    stop(f"setuptools {setuptools.__version__} is too old: pip install 'setuptools>=77'.")

# No sources for setuptools to compile; `depends` puts them into the source distribution.
sources = sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob("*") if path.is_file())
setup(
    ext_modules=[Extension("detr_fast._C", sources=[], depends=sources)],
    cmdclass={"build_ext": CMakeBuild},
)
