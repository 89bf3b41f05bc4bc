"""Where a cell's states lie beside h: at one address, or, where there are several, each at one of a table's."""

from __future__ import annotations

from typing import Any

from fastrnn.backends.numba.kernels.activations import forced
from fastrnn.backends.numba.kernels.cell_kernel import CellKernel
from fastrnn.backends.numba.kernels.simd import load_int, load_some


def other_state(cell: CellKernel) -> Any:
    """A function: what a block of arguments tells of the states beside h, and the number of one -> its address."""
    tabled = cell.states > 2

    @forced
    def one_of(states: int, number: int) -> Any:
        return load_int(states, number) if tabled else states

    return one_of


@forced
def load_if_there(like: Any, base: int, index: int, some: int) -> Any:
    """`load_some`, or zeros where the base is 0."""
    return load_some(like, base, index, some) if base != 0 else like
