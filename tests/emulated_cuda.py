"""The module of tests/cpp/ptx: csrc/cuda as nvcc compiles it, on a machine without a GPU."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pybind11
import torch

SOURCE = Path(__file__).parent / "cpp" / "ptx"
LAUNCHERS = {
    *("match", "linear_sum_assignment", "target_classes"),
    *("box_iou", "box_iou_backward", "box_losses", "box_losses_backward"),
}
_data_ptr = torch.Tensor.data_ptr


def build(folder: Path) -> ModuleType:
    """Compile the module in ``folder`` and import it."""
    configure = ["cmake", "-S", str(SOURCE), "-B", str(folder)]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("emulated_cuda.*so")
    spec = importlib.util.spec_from_file_location("emulated_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Emulated:
    """The module; a launcher's kernels may access the tensors whose addresses have been taken since
    the call before, and nothing else."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._given: list[torch.UntypedStorage] = []
        self.data_ptr = self._data_ptr()

    def _data_ptr(self) -> Callable[[torch.Tensor], int]:
        def data_ptr(tensor: torch.Tensor) -> int:
            self._given.append(tensor.untyped_storage())
            return _data_ptr(tensor)

        return data_ptr

    def __dir__(self) -> list[str]:
        return dir(self._module)

    def __getattr__(self, name: str) -> object:
        value = getattr(self._module, name)
        if not callable(value) or name not in LAUNCHERS:
            return value

        def launch(*args: object, **kwargs: object) -> object:
            self._module.allow([(s.data_ptr(), s.nbytes()) for s in self._given])
            self._given.clear()
            return value(*args, **kwargs)

        return launch
