"""How kernels see their blocks of arguments, and the questions that they ask them about lengths and resets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import from_dtype, types

from fastrnn.backends.numba.arguments import FIELDS
from fastrnn.backends.numba.kernels.activations import forced
from fastrnn.backends.numba.kernels.simd import load_byte, load_int


def pointer_to_blocks(task: str) -> Any:
    """The Numba type of a pointer to the blocks of "pack", "forward" or "backward": records of int64 fields."""
    return types.CPointer(from_dtype(np.dtype([(name, np.int64) for name in FIELDS[task]])))


@forced
def length(a: Any, row: int) -> Any:
    """How many steps row number `row` of the batch has."""
    return a.steps if a.lengths == 0 else load_int(a.lengths, row)


@forced
def is_cut(a: Any, t: int, row: int) -> Any:
    """Whether the state that enters step t is zero because of a reset; see `products.cuts`."""
    if a.resets == 0:
        return False
    at = t + a.reverse
    return at < length(a, row) and load_byte(a.resets, at * a.batch + row) != 0
