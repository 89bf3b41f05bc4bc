"""Means over the units of a sequence, of tiles that hold all of them.

Units lie on different threads and warps, so that a sum over them waits for all of a program. What is known at the same
time is therefore summed together, up to four tiles at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.interpreter import INTERPRETED

_ONE_BY_ONE = tl.constexpr(INTERPRETED)
"""The interpreter takes some 10 µs an element for sums that are not its own."""


@triton.jit
def means(tiles, unit, D: tl.constexpr):
    """The mean of each of a tuple of tiles, as tiles of one unit.

    `unit` is (units, 1) or (1, units), as units lie in the tiles: which they are. Those from D on, that there are not,
    may hold anything.
    """
    AXIS: tl.constexpr = 0 if unit.shape[0] > 1 else 1
    out = ()
    for first in tl.static_range(0, len(tiles), 4):
        group = ()
        for k in tl.static_range(4):
            if first + k < len(tiles):
                tile = tiles[first + k]
                if unit.shape[AXIS] > D:
                    tile = tl.where(unit < D, tile, 0.0)
                group = group + (tile,)
        sums = _sums(group, AXIS)
        for k in tl.static_range(len(group)):
            out = out + (sums[k] * (1.0 / D),)
    return out


@triton.jit
def _sums(tiles, AXIS: tl.constexpr):
    """The sum of each of up to four tiles."""
    if len(tiles) == 1:
        return (tl.sum(tiles[0], AXIS, keep_dims=True),)
    elif _ONE_BY_ONE:
        out = ()
        for k in tl.static_range(len(tiles)):
            out = out + (tl.sum(tiles[k], AXIS, keep_dims=True),)
        return out
    elif len(tiles) == 2:
        return tl.reduce((tiles[0], tiles[1]), AXIS, _add_two, keep_dims=True)
    elif len(tiles) == 3:
        return tl.reduce((tiles[0], tiles[1], tiles[2]), AXIS, _add_three, keep_dims=True)
    else:
        return tl.reduce((tiles[0], tiles[1], tiles[2], tiles[3]), AXIS, _add_four, keep_dims=True)


@triton.jit
def _add_two(a, b, more_a, more_b):
    return a + more_a, b + more_b


@triton.jit
def _add_three(a, b, c, more_a, more_b, more_c):
    return a + more_a, b + more_b, c + more_c


@triton.jit
def _add_four(a, b, c, d, more_a, more_b, more_c, more_d):
    return a + more_a, b + more_b, c + more_c, d + more_d
