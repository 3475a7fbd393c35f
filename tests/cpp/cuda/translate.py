"""Translate the CUDA syntax in csrc/cuda to C++: python translate.py csrc/cuda OUT."""

import re
import sys
from pathlib import Path

LAUNCH = re.compile(r"(\w+(?:<\w+>)?)\s*<<<(.*?)>>>\s*\(", re.DOTALL)
SHARED = re.compile(r"extern __shared__ __align__\(16\) char (\w+)\[\];")


def translate(text: str) -> str:
    """Make launches calls, dynamic shared memory a pointer, and the architecture a macro."""
    text = LAUNCH.sub(r"emulated::launch([&](auto... args) { \1(args...); }, \2)(", text)
    text = SHARED.sub(r"char* const \1 = emulated::shared_memory();", text)
    return text.replace("__CUDA_ARCH__", "EMULATED_CUDA_ARCH")


def main(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        name = path.name if path.suffix != ".cu" else f"{path.stem}.cpp"
        text = translate(path.read_text())
        code = re.sub(r"//.*", "", text)
        assert "<<<" not in code and "extern __shared__" not in code, path
        (out / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
