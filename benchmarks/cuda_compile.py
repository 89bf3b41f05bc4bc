"""Compiles the CUDA extension's kernels for chips that need not be there, and reads their machine code.

    python -m benchmarks.cuda_compile [--architecture 80 90a] [--cells lstm gru]

prints a line for each kernel and architecture: registers, bytes of memory that a thread spills to, and of one turn of
its time loop the instructions, the products, the barriers of the block, the waits for asynchronous stores, the loads of
words that other blocks store meanwhile, and the 16-byte loads from shared memory, which is where weights are that found
no room in registers. These are no measurements of time.
"""

from __future__ import annotations

import argparse
import itertools
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
from benchmarks.checkout import ROOT
from fastrnn import extension
from fastrnn.cells import CELLS
from fastrnn.cells.emit.cuda import class_name

WAYS = ("cluster", "grid")
OPERATIONS = ("forward", "backward")
SOURCES = ROOT / "csrc"
"""With a folder for each way, which has a source for each operation."""
FIRST_WITH_CLUSTERS = 90
ARCHITECTURES = ("80", "90a")
"""The oldest of all, and the oldest with clusters."""

CELL_OF_CLASS = {class_name(name): cell for name, cell in CELLS.items()}
"""As csrc/cells.cuh names them."""
TILE_M = 16
TILE_K = {"bfloat16": 16, "float16": 16, "tf32": 8}
"""Of a tile of weights, by element."""

_KERNEL = re.compile(r"(cluster|grid)\d+(forward|backward)_kernel.*?Shape\w*?INS_\d+(\w+?)ENS_\d+(\w+?)E((?:Li\d+E)+)")


class Source(NamedTuple):
    """What nvcc compiles at a time: the kernels of a way and an operation, for one cell."""

    way: str
    operation: str
    cell: str

    @property
    def name(self) -> str:
        """Of the cell, as the package has it."""
        return CELL_OF_CLASS[self.cell].name

    def __str__(self) -> str:
        return f"{self.way}-{self.name}_{self.operation}"


class Kernel(NamedTuple):
    """An instance."""

    way: str
    operation: str
    cell: str
    element: str
    shape: tuple[int, ...]
    """of the cluster way units, blocks, M warps and K warps, of the grid way a block's units and its register tiles"""

    @property
    def source(self) -> Source:
        """Where it is instantiated."""
        return Source(self.way, self.operation, self.cell)

    @property
    def warps(self) -> int:
        """of a block"""
        return self.shape[2] * self.shape[3] if self.way == "cluster" else 8

    @property
    def tiles(self) -> int:
        """Tiles of weights that a warp multiplies in a step: of the grid way, for the widest head."""
        if self.way == "grid":
            return self._grid_tiles()
        units, blocks, *_ = self.shape
        rows = len(CELL_OF_CLASS[self.cell].u_gates) * units // blocks
        return rows * units // (TILE_M * TILE_K[self.element] * self.warps)

    def _grid_tiles(self) -> int:
        """By the rules of csrc/grid/shape.cuh."""
        block_units, register_tiles = self.shape
        cell, rows = CELL_OF_CLASS[self.cell], 8
        gates, states = len(cell.u_gates), len(cell.states)
        m_gates, k_gates, kept = (gates, 1, states) if self.operation == "forward" else (1, gates, states + 1)
        m_tiles, units_of_tiles = m_gates * block_units // TILE_M, 2 * TILE_K[self.element]
        slice_tiles, slice_units = k_gates * 2 * m_tiles, self.warps * units_of_tiles
        sums = 2 * self.warps * m_tiles * TILE_M * rows * 4
        shared = (227 * 1024 - sums - (block_units * rows * kept + rows) * 4) // (self.warps * 512)
        return min((register_tiles + shared) // slice_tiles, 2048 // slice_units) * slice_tiles

    def __str__(self) -> str:
        name = f"{self.way} {self.operation} {self.cell} {self.element}"
        if self.way == "grid":
            return f"{name} {self.shape[0]} units a block"
        units, blocks, m, k = self.shape
        return f"{name} {units} units, {blocks} blocks of {m}x{k} warps"


class Compiled(NamedTuple):
    """What ptxas made of a kernel."""

    kernel: Kernel
    architecture: str
    registers: int
    stack: int
    """bytes of a thread's memory: for what is spilled, and for arrays whose index is known only when the kernel runs"""
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


def runs_on(way: str, architecture: str) -> bool:
    """Whether kernels of that way are compiled for an architecture."""
    return way == "grid" or int(architecture.rstrip("af")) >= FIRST_WITH_CLUSTERS


def sources(architecture: str) -> list[Source]:
    """What holds kernels for an architecture."""
    ways = [way for way in WAYS if runs_on(way, architecture)]
    return [Source(*one) for one in itertools.product(ways, OPERATIONS, CELL_OF_CLASS)]


def compile_all(architecture: str, cells: Sequence[str] = ()) -> Iterator[Compiled]:
    """Every kernel of `cells`, by default of all. Raises CalledProcessError where nvcc fails."""
    wanted = [source for source in sources(architecture) if not cells or source.name in cells]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for compiled in pool.map(lambda source: compile_source(source, architecture), wanted):
            yield from compiled


def compile_source(source: Source, architecture: str) -> list[Compiled]:
    """The kernels of one source, as setup.py compiles it. Raises CalledProcessError where nvcc fails."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        command = [
            str(nvcc()),
            "-std=c++17",
            "-O3",
            f"-arch=sm_{architecture}",
            "-cubin",
            f"-DFASTRNN_CELL={source.cell}",
            str(SOURCES / source.way / f"{source.operation}.cu"),
            "-o",
            str(cubin),
        ]
        subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
        return read(cubin, architecture)


def installed(architecture: str) -> Path | None:
    """The installed extension, if it holds what these sources are compiled to for `architecture`."""
    if extension.why_missing() is not None or extension.build().host:
        return None
    library = Path(str(extension.load().__file__))
    newest = max(path.stat().st_mtime for path in (ROOT / "setup.py", *SOURCES.rglob("*")))
    is_ours = architecture in extension.build().architectures and library.stat().st_mtime > newest
    return library if is_ours else None


def read(binary: Path, architecture: str) -> list[Compiled]:
    """The kernels for `architecture` in a cubin or a library. Raises CalledProcessError where cuobjdump fails."""
    found = sass.read_all(binary, str(cuobjdump()), architecture)
    named = ((_kernel(symbol), code) for symbol, code in found.items())
    return [
        Compiled(kernel, architecture, registers, stack, assembly)
        for kernel, (assembly, registers, stack) in named
        if kernel is not None
    ]


def _kernel(symbol: str) -> Kernel | None:
    """What the mangled name of a kernel's entry says; None of another's."""
    found = _KERNEL.search(symbol)
    if found is None:
        return None
    way, operation, cell, element, shape = found.groups()
    return Kernel(way, operation, cell, element.lower(), tuple(map(int, re.findall(r"\d+", shape))))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command with `arguments`, the process's own by default. Returns its exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.cuda_compile", description=__doc__)
    parser.add_argument("--architecture", nargs="+", default=ARCHITECTURES, help="as nvcc names it (default: 80 90a)")
    parser.add_argument("--cells", nargs="*", default=(), help="default: all")
    options = parser.parse_args(arguments)
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    counts = ("registers", "spilled bytes", "instructions", "products", "barriers", "waits", "polls", "16-byte loads")
    table = Table("kernel", "sm", *counts, box=None)
    for architecture in options.architecture:
        for compiled in compile_all(architecture, options.cells):
            code = compiled.assembly
            loop = (code.instructions, code.products, code.barriers, code.waits, code.polls, code.shared_vectors)
            row = (architecture, compiled.registers, compiled.stack, *loop)
            table.add_row(str(compiled.kernel), *map(str, row))
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
