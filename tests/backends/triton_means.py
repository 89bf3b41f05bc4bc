"""The kernel of `test_triton_over_units.py`: what a decorator of Triton needs to be in a file that can be read."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels.means import means


@triton.jit
def means_kernel(
    x,  # (COUNT, B, D)
    out,  # (COUNT, B): written
    COUNT: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    UNITS_FIRST: tl.constexpr,
):
    """The means of tiles (units, sequences) or (sequences, units) whose units from D on are NaN."""
    if UNITS_FIRST:
        unit, batch = tl.arange(0, DP)[:, None], tl.arange(0, B)[None, :]
    else:
        unit, batch = tl.arange(0, DP)[None, :], tl.arange(0, B)[:, None]
    tiles = ()
    for k in tl.static_range(COUNT):
        tiles = tiles + (tl.load(x + k * B * D + batch * D + unit, mask=unit < D, other=float("nan")),)
    made = means(tiles, unit, D)
    for k in tl.static_range(COUNT):
        tl.store(out + k * B + batch, made[k])
