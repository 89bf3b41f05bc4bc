"""The kernel of `test_emitted_triton.py`: what a decorator of Triton needs to be in a file that can be read."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels.tiles import load_tiles


@triton.jit
def cell_kernel(
    gx,  # (gates of x, N), and so on
    gh,
    before,
    parameters,
    inputs,
    d_after,
    after,  # written, as are those below
    saved,
    blocks,
    d_before,
    PREACTIVATIONS: tl.constexpr,
    STEP: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    COUNTS: tl.constexpr,  # of gates of x and u, states, parameters and inputs
    N: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):
    """A step and its derivative of N units."""
    unit = tl.arange(0, N)
    dtype: tl.constexpr = gx.dtype.element_ty
    pre = PREACTIVATIONS(
        load_tiles(gx, unit, N, unit < N, COUNTS[0], dtype), load_tiles(gh, unit, N, unit < N, COUNTS[1], dtype)
    )
    states = load_tiles(before, unit, N, unit < N, COUNTS[2], dtype)
    d_states = load_tiles(d_after, unit, N, unit < N, COUNTS[2], dtype)
    given = load_tiles(parameters, unit, N, unit < N, COUNTS[3], dtype)
    of_step = load_tiles(inputs, unit, N, unit < N, COUNTS[4], dtype)
    made, kept = STEP(pre, states, given, of_step, unit, N, APPROXIMATE)
    d_pre, direct = DERIVATIVE(d_states, kept, states, made, given, of_step, unit, N, APPROXIMATE)
    _store(after, made, unit, N)
    _store(saved, kept, unit, N)
    _store(blocks, d_pre, unit, N)
    _store(d_before, direct, unit, N)


@triton.jit
def _store(first, tiles, unit, N: tl.constexpr):
    for k in tl.static_range(len(tiles)):
        tl.store(first + k * N + unit, tiles[k])
