"""Tiles of (sequences, units) that a program computes without a product: where they lie, and what is loaded of them."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels import masks


@triton.jit
def tile(B, D: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """This program's first sequence, its rows (ROWS, 1) from there, its units (1, UNITS) and which of them exist."""
    ACROSS: tl.constexpr = (D + UNITS - 1) // UNITS
    place = tl.program_id(0)
    first = (place // ACROSS).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    unit = place % ACROSS * UNITS + tl.arange(0, UNITS)[None, :]
    return first, row, unit, (row < B - first) & (unit < D)


@triton.jit
def load_cut(resets, k, is_passed, length, first, row, B):
    """(ROWS, 1): whether resets cut at k; never where no states pass there."""
    return masks.cut(load_reset(resets, k, is_passed, first, row, B), k, length)


@triton.jit
def load_reset(resets, k, is_passed, first, row, B):
    """(ROWS, 1): what lies at k, zero where no states pass there."""
    return tl.load(resets + k * B.to(tl.int64) + first + row, mask=(row < B - first) & is_passed, other=0)
