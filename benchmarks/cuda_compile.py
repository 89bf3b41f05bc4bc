"""Compiles the CUDA extension's kernels for a chip that need not be there, and reads their machine code.

    python -m benchmarks.cuda_compile [--architecture 90a] [--cells lstm gru]

prints a line for each kernel: registers, spilled bytes, and of one turn of its time loop the instructions, the
products, and how often it moves a register to or from memory. These are no measurements of time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import sass

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cluster"
ARCHITECTURE = "90a"
"""The oldest with clusters."""

GATES = {"Lstm": 4, "Gru": 3, "RnnTanh": 1, "RnnRelu": 1}
"""By cell, as csrc/cells.cuh names it."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", re.DOTALL)
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_SHAPE = re.compile(r"(forward|backward)_kernel.*?Shape\w*?INS_\d+(\w+?)ENS_\d+(\w+?)E((?:Li\d+E)+)")
_FUNCTION = re.compile(r"^\s*Function : (\w+)$", re.MULTILINE)


class Kernel(NamedTuple):
    """An instance, as `csrc/cluster/shapes.h` lists it."""

    operation: str
    cell: str
    element: str
    units: int
    blocks: int
    warps: tuple[int, int]

    @property
    def tiles(self) -> int:
        """16 x 16 tiles of w_hh that a warp multiplies in a step."""
        m, k = self.warps
        return GATES[self.cell] * self.units // self.blocks * self.units // (16 * 16 * m * k)

    def __str__(self) -> str:
        m, k = self.warps
        return f"{self.operation} {self.cell} {self.element} {self.units} units, {self.blocks} blocks of {m}x{k} warps"


class Compiled(NamedTuple):
    """What ptxas made of a kernel."""

    kernel: Kernel
    registers: int
    spilled: int
    """bytes of a thread that are written to memory for want of registers, anywhere in the kernel"""
    assembly: sass.Assembly


@cache
def nvcc() -> str | None:
    """The path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")


@cache
def cuobjdump() -> str | None:
    """The path of cuobjdump: the toolkit's, or the one that ships with Triton."""
    triton = find_spec("triton")
    places = (triton and triton.submodule_search_locations) or ()
    folders = [str(Path(place, "backends/nvidia/bin")) for place in places]
    beside = [str(Path(os.path.realpath(found)).parent)] if (found := nvcc()) else []
    return shutil.which("cuobjdump", path=os.pathsep.join([*beside, os.environ.get("PATH", ""), *folders]))


def missing() -> str | None:
    """Why nothing can be compiled or read here, or None."""
    if nvcc() is None:
        return "there is no nvcc"
    return None if cuobjdump() else "there is no cuobjdump: not beside nvcc, on PATH or in triton"


def compile_all(cells: Sequence[str] = (), architecture: str = ARCHITECTURE) -> Iterator[Compiled]:
    """Every kernel of `cells`, by default of all. Raises CalledProcessError where nvcc fails."""
    sources = [path for path in sorted(SOURCES.glob("*.cu")) if not cells or path.stem.rsplit("_", 1)[0] in cells]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for compiled in pool.map(lambda source: compile_source(source, architecture), sources):
            yield from compiled


def compile_source(source: Path, architecture: str = ARCHITECTURE) -> list[Compiled]:
    """The kernels of one source file, as setup.py compiles it. Raises CalledProcessError where nvcc fails."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        command = [str(nvcc()), "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v"]
        said = _output([*command, str(source), "-o", str(cubin)])
        code = _output([str(cuobjdump()), "-sass", str(cubin)])
    bodies = dict(zip(*[iter(_FUNCTION.split(code)[1:])] * 2, strict=True))
    result = []
    for entry in _ENTRY.finditer(said):
        spills = _SPILLS.search(entry[0])
        assert spills is not None, entry[0]
        spilled = max(map(int, spills.groups()))
        result.append(Compiled(_kernel(entry[1]), int(entry[2]), spilled, sass.parse(bodies[entry[1]])))
    return result


def _output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def _kernel(symbol: str) -> Kernel:
    """What the mangled name of a kernel's entry says."""
    found = _SHAPE.search(symbol)
    if found is None:
        raise ValueError(f"no kernel of a shape: {symbol}")
    units, blocks, *warps = map(int, re.findall(r"\d+", found[4]))
    return Kernel(found[1], found[2], found[3].lower(), units, blocks, (warps[0], warps[1]))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command with `arguments`, the process's own by default. Returns its exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.cuda_compile", description=__doc__)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="as nvcc names it (default: %(default)s)")
    parser.add_argument("--cells", nargs="*", default=(), help="default: all")
    options = parser.parse_args(arguments)
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    table = Table("kernel", "registers", "spilled bytes", "instructions", "products", "moves to memory", box=None)
    for compiled in compile_all(options.cells, options.architecture):
        code = compiled.assembly
        counts = (compiled.registers, compiled.spilled, code.instructions, code.products, code.spills)
        table.add_row(str(compiled.kernel), *map(str, counts))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
