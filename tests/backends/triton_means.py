"""The kernel of `test_triton_over_units.py`: what a decorator of Triton needs to be in a file that can be read."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels.means import means
from fastrnn.backends.triton.kernels.tiles import load_tiles


@triton.jit
def means_kernel(
    x,  # (COUNT, B, DP)
    out,  # (COUNT, B): written
    COUNT: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    UNITS_FIRST: tl.constexpr,
):
    """The means of the first D units, of tiles (units, sequences) or (sequences, units)."""
    if UNITS_FIRST:
        unit, batch = tl.arange(0, DP)[:, None], tl.arange(0, B)[None, :]
    else:
        unit, batch = tl.arange(0, DP)[None, :], tl.arange(0, B)[:, None]
    tiles = load_tiles(x, batch * DP + unit, B * DP, unit < DP, COUNT, x.dtype.element_ty)
    made = means(tiles, unit, D)
    for k in tl.static_range(COUNT):
        tl.store(out + k * B + batch, made[k])
