"""With what a panel of weights is multiplied: see `backends/numba/extents.py`."""

from __future__ import annotations

from typing import Any

from fastrnn.backends.numba.kernels.inner import forced
from fastrnn.backends.numba.kernels.simd import load_int


@forced
def extent(table: int, panel: int) -> Any:
    """The first number, and how many."""
    return load_int(table, 2 * panel), load_int(table, 2 * panel + 1)
