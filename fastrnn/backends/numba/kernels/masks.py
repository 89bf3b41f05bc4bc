"""What lengths and resets mean for step t of one row of the batch: docs/design.md, "Semantics".

`a` is a block of arguments of a forward or backward; "before" is meant in the order of the forward.
"""

from __future__ import annotations

from typing import Any

from fastrnn.backends.numba.kernels.inner import forced
from fastrnn.backends.numba.kernels.simd import load_byte, load_int


@forced
def length(a: Any, row: int) -> Any:
    """How many steps of a row are live: all where no lengths are given."""
    return a.steps if a.lengths == 0 else load_int(a.lengths, row)


@forced
def live(a: Any, t: int, row: int) -> Any:
    """Whether step t belongs to the row's sequence.

    One that does not leaves the states as they are, gives zero, and hands their gradients on unchanged.
    """
    return t < length(a, row)


@forced
def cut(a: Any, t: int, row: int) -> Any:
    """Whether a reset makes the states zero that enter step t; no gradient passes there either.

    A reset at k lies between steps k - 1 and k, whichever comes first, and cuts where step k is live.
    """
    if a.resets == 0:
        return False
    k = t + a.reverse
    return live(a, k, row) and load_byte(a.resets, k * a.batch + row) != 0


@forced
def starts(a: Any, t: int, row: int) -> Any:
    """Whether no live step comes before step t, so that, cuts aside, the initial states enter it."""
    return not live(a, t + 1, row) if a.reverse else t == 0
