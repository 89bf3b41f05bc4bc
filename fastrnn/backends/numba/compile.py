"""Kernels: compiled when first needed, once, and kept on disk (`kernel_files.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastrnn.backends.numba.cell_code import cell_code
from fastrnn.backends.numba.geometry import CHUNK_ROWS, PANEL_VECTORS, Geometry, panel_units, stream_units
from fastrnn.backends.numba.kernel_files import KernelFile
from fastrnn.cells import projection
from fastrnn.first_use import undisturbed

if TYPE_CHECKING:
    from fastrnn.backends.numba.kernels.cell_kernel import CellKernel

PARALLEL = "parallel"
"""The task whose kernel has no dtype either: it is asked for in float32."""
STREAM = "stream_"
"""How the tasks of streams begin, before the format of the weights."""
SHARED = ("pack", "weights", PARALLEL)
"""Tasks whose kernels serve every cell."""


class Kernel(NamedTuple):
    """A compiled kernel."""

    address: int
    """of a C function void (*)(void *) that takes blocks of arguments"""
    geometry: Geometry


_kernels: dict[tuple[str, str, torch.dtype], Kernel] = {}


def kernel(cell: str, task: str, dtype: torch.dtype) -> Kernel:
    """The kernel for a cell's `task` ("forward", "backward", "stream_int8", ...), or for one of `SHARED`, in `dtype`.

    The first call in a process loads it from disk, or compiles it and says so on stderr. Thread-safe.
    """
    key = ("" if task in SHARED else cell, task, dtype)
    return _kernels.get(key) or undisturbed(lambda: _kernels.get(key) or _kernels.setdefault(key, _build(*key)))


def _build(cell: str, task: str, dtype: torch.dtype) -> Kernel:
    import numba
    from numba.core.ccallback import CFunc

    from fastrnn.backends.numba.kernels import record, simd, tile
    from fastrnn.backends.numba.kernels.stream import stream_registers

    number = {torch.float32: numba.float32, torch.float64: numba.float64}[dtype]
    code = cell_code(cell) if cell else None
    name = "_".join([*([code.file] if code else []), task, number.name])
    title = " ".join([*([code.title] if code else []), task.replace("_", " "), number.name])
    function, widths = _function(code.kernel if code else None, task, cell in projection.CELLS, number)
    _name_apart(function, name)
    compiled = CFunc(function, ([record.pointer_to_blocks(task)], numba.types.void), {}, {"error_model": "numpy"})
    compiled._cache = KernelFile(name, title)
    compiled.compile()
    geometry = Geometry(
        lanes=simd.register_bits() // number.bitwidth,
        itemsize=number.bitwidth // 8,
        rows=max(tile.tile_rows(width) for width in widths),
        tile=max(tile.tile_rows(width) * width for width in widths),
        registers=stream_registers() if task.startswith(STREAM) else 1,
    )
    return Kernel(compiled.address, geometry)


def _function(cell: CellKernel | None, task: str, projects: bool, number: Any) -> tuple[Any, set[int]]:
    """What is to be compiled, and the widths in vectors of the panels that it multiplies with."""
    from fastrnn.backends.numba.kernels.backward import backward_kernel
    from fastrnn.backends.numba.kernels.forward import forward_kernel
    from fastrnn.backends.numba.kernels.pack import pack_kernel
    from fastrnn.backends.numba.kernels.parallel import parallel_kernel
    from fastrnn.backends.numba.kernels.pointwise import pointwise_backward_kernel, pointwise_kernel
    from fastrnn.backends.numba.kernels.stream import stream_kernel, stream_registers
    from fastrnn.backends.numba.kernels.unpacked import unpacked_kernel
    from fastrnn.backends.numba.kernels.weights import weights_kernel

    widths = {PANEL_VECTORS}
    if cell is None:
        if task == PARALLEL:
            return parallel_kernel(), widths
        return (pack_kernel(number) if task == "pack" else weights_kernel(PANEL_VECTORS, CHUNK_ROWS, number)), widths
    if task == "forward":
        units = panel_units(cell.x_gates, cell.u_gates)
        widths |= {gates * units for gates in (cell.x_gates, cell.u_gates) if gates}
        return forward_kernel(cell, units, PANEL_VECTORS, projects, number), widths
    if task == "backward":
        return backward_kernel(cell, PANEL_VECTORS, projects, number), widths
    if task.startswith(STREAM):
        registers = stream_registers()
        units = stream_units(cell.x_gates, cell.u_gates, registers)
        return stream_kernel(cell, task.removeprefix(STREAM), units, registers, PANEL_VECTORS, projects, number), widths
    others = {"unpacked": unpacked_kernel, "pointwise": pointwise_kernel}
    return others.get(task, pointwise_backward_kernel)(cell, number), widths


def _name_apart(function: Any, name: str) -> None:
    """Puts the kernel's name into those of the functions that were made for it alone, which become symbols.

    Numba tells functions of one name apart by a number that starts at one in every process. Kernels that two processes
    compiled would share symbols in a third one that loads both, and one cell would run the other's code.
    """
    for cell in function.__closure__ or ():
        inner = getattr(cell.cell_contents, "py_func", None)
        if inner is not None and "<locals>" in inner.__qualname__ and not inner.__qualname__.startswith(name):
            inner.__qualname__ = f"{name}.{inner.__qualname__}"
            _name_apart(inner, name)
