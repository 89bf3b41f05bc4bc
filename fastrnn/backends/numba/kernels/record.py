"""How kernels see their blocks of arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import from_dtype, types

from fastrnn.backends.numba.arguments import FIELDS


def pointer_to_blocks(task: str) -> Any:
    """The Numba type of a pointer to the blocks of "pack", "forward" or "backward": records of int64 fields."""
    return types.CPointer(from_dtype(np.dtype([(name, np.int64) for name in FIELDS[task]])))
