"""Describe the build and the machine for bug reports: ``python -m detr_fast.info``."""

import re
from pathlib import Path

import torch
import torchvision

import detr_fast
from detr_fast import _C

# The compiled ops that have a GPU form, by their names in ``_C`` and, if built, in ``_C.cuda``. The
# compiled dropout, which is for CPUs only, is not listed.
OPS = (
    "linear_sum_assignment",
    "match",
    "box_iou",
    "box_iou_backward",
    "box_losses",
    "box_losses_backward",
    "target_classes",
)


def report() -> str:
    """Return a readable text on this package, torch, driver, devices, and each op's forms.

    It needs no driver, and initialises devices only as far as torch does to name them.
    """
    cuda = "not built"
    if _C.cuda_version:
        cuda = f"{_C.cuda_version}, {_C.cuda_compiler}, code for {_C.cuda_architectures}"
    sections = {
        f"detr_fast {detr_fast.__version__}": {
            "installed in": str(Path(detr_fast.__file__).parent),
            "C++ compiler": f"{_C.compiler}, {_C.build_type}",
            "SIMD in use": _C.simd(),
            "threads in use": _C.threads_in_use(),
            "CUDA": cuda,
            "CUDA decision": _C.cuda_reason,
        },
        f"torch {torch.__version__}": {
            "torchvision": torchvision.__version__,
            "CUDA of torch": torch.version.cuda or "none",
            "threads": str(torch.get_num_threads()),
        },
        "NVIDIA": {"driver": _driver(), **_devices()},
        "compiled ops": {op: _forms(op) for op in OPS},
    }
    width = max(len(name) for entries in sections.values() for name in entries)
    lines = []
    for title, entries in sections.items():
        lines.append(title)
        lines += [f"  {name:<{width}}  {text}" for name, text in entries.items()]
    return "\n".join(lines)


def code_for(
    capability: tuple[int, int],  # a device's
    architectures: str,  # those built, as in "8.0 9.0+PTX"
) -> str | None:
    """Return which of the built code the device runs, or None if it runs none of it.

    Machine code runs on devices of the same major version that are not older. PTX is compiled, when
    first loaded, for any device that is not older. Code with the letter a (9.0a), including its
    PTX, runs on exactly that version; the letter f means the family: the same major version.
    """
    best = None
    for name in architectures.split():
        major, minor, letter, ptx = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name).groups()
        built = (int(major), int(minor))
        if capability == built or (
            letter != "a" and capability[0] == built[0] and capability >= built
        ):
            best = f"code for {name.removesuffix('+PTX')}"
        elif ptx and not letter and capability > built and best is None:
            best = f"PTX for {name.removesuffix('+PTX')}, compiled when first loaded"
    return best


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    version = re.search(r"\d+\.\d+(\.\d+)?", path.read_text()) if path.is_file() else None
    newest = _C.cuda.driver_version() if _C.cuda_version else 0
    if not version and not newest:
        return "none"
    runs = f", runs CUDA up to {newest // 1000}.{newest % 1000 // 10}" if newest else ""
    return f"{version[0] if version else 'version unknown'}{runs}"


def _devices() -> dict[str, str]:
    if torch.version.cuda is None or not torch.cuda.is_available():
        return {"devices": "none that torch can use"}
    devices = {}
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        number = "{}.{}".format(*capability)
        if _C.cuda_version:
            code = code_for(capability, _C.cuda_architectures)
            code = code or f"NO CODE: rebuild with TORCH_CUDA_ARCH_LIST={number}"
        else:
            code = "no CUDA code was built"
        name = torch.cuda.get_device_name(index)
        devices[f"cuda:{index}"] = f"{name}, compute capability {number}: {code}"
    return devices


def _forms(op: str) -> str:
    """Return the devices for which this build has a compiled form of the op."""
    return "CPU, CUDA" if hasattr(getattr(_C, "cuda", None), op) else "CPU"


if __name__ == "__main__":
    print(report())
