"""Registers, shared memory and spills of each kernel, from what ``nvcc -Xptxas=-v`` printed.

``python .ci/kernels.py BUILD_LOG`` prints one line per kernel and architecture; its exit status is
1 if a kernel spills registers to memory, or if ptxas printed nothing.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    name: str  # mangled
    architecture: str
    registers: int = 0  # 0 for a function that is not a kernel: its caller's count includes it
    shared: int = 0  # bytes, static
    stack: int = 0  # bytes per thread
    spilled: int = 0  # bytes per thread, stores and loads


def parse(log: str) -> list[Usage]:
    """Every function in the order of the log."""
    found: dict[tuple[str, str], Usage] = {}
    kernel = function = None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            kernel = function = Usage(*match.groups())
        elif kernel is None:
            continue
        elif match := re.search(r"Function properties for (\S+)", line):
            function = Usage(match[1], kernel.architecture)
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            stack, stores, loads = map(int, match.groups())
            function = function._replace(stack=stack, spilled=stores + loads)
            found[function[:2]] = function
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[kernel[:2]] = found[kernel[:2]]._replace(
                registers=int(match[1]), shared=int(shared[1]) if shared else 0
            )
    return list(found.values())


def readable(names: list[str]) -> list[str]:
    """Demangled, without namespaces and parameters; as they are where there is no c++filt."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return names
    done = subprocess.run([tool], input="\n".join(names), stdout=subprocess.PIPE, text=True)
    done.check_returncode()
    return [_short(name) for name in done.stdout.splitlines()]


def _short(name: str) -> str:
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for position, letter in enumerate(name):  # up to the parameters, outside <...>
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:position]
            break
    name = re.sub(r"\((?:bool|int|long|unsigned int|unsigned long)\)", "", name)  # of (int)32
    return re.sub(r"\b(?:\w+::)+", "", name)


def table(usages: list[Usage]) -> str:
    rows = [("kernel", "architecture", "registers", "shared bytes", "stack bytes", "spilled bytes")]
    for name, usage in zip(readable([u.name for u in usages]), usages, strict=True):
        registers = str(usage.registers) if usage.registers else "in its callers"
        numbers = (str(n) for n in usage[3:])
        rows.append((name, usage.architecture, registers, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def main(path: str) -> int:
    log = Path(path).read_text()
    if "ptxas info" not in log:
        print(f"{path} has no line of ptxas: configure with -DDETR_FAST_PTXAS=ON")
        return 1
    usages = parse(log)
    print(table(sorted(usages)))
    if spilling := sum(usage.spilled > 0 for usage in usages):
        print(f"{spilling} of {len(usages)} spill registers to memory")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
