"""What a kernel is handed of a cell: functions over tuples of tiles; see `fastrnn.cells.emit.triton`."""

from __future__ import annotations

from typing import Any, NamedTuple


class Functions(NamedTuple):
    """Of a cell, under `triton.jit`."""

    preactivations: Any
    step: Any
    derivative: Any
    linear_step: Any = None
    linear_derivative: Any = None
    """None of what is not linear"""
