"""Tuples of tiles: loading, selecting, and one wide tile as four narrow ones without leaving the registers.

A cell of one gate has one tile; every other has four, three gates being padded to four. That is what the persistent
kernels can take: as many gates of x as of u, one, three or four, and as many blocks, and as many saved values or none,
one or four. The per-step kernels have no such tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.interpreter import INTERPRETED

_WIDEN = tl.constexpr(INTERPRETED)
"""The interpreter multiplies 16-bit operands wrongly (bfloat16) or rounds their sums (float16)."""

_LARGEST_HALF = tl.constexpr(65504.0)
"""Of float16."""
_TF32 = tl.constexpr(-(1 << 13))
"""The bits of a float32 that a product in TF32 looks at."""


@triton.jit
def dot(a, b, sum, PRECISION: tl.constexpr):
    """a @ b + sum, accumulated in the dtype of `sum`; PRECISION is what `tl.dot` calls input_precision."""
    if _WIDEN:
        a, b = a.to(sum.dtype), b.to(sum.dtype)
        if PRECISION == "tf32" and sum.dtype == tl.float32:
            a, b = _truncated(a), _truncated(b)
    return tl.dot(a, b, sum, input_precision=PRECISION, out_dtype=sum.dtype)


@triton.jit
def _truncated(x):
    """What the tensor cores see of a float32 in TF32."""
    return (x.to(tl.int32, bitcast=True) & _TF32).to(tl.float32, bitcast=True)


@triton.jit
def select(condition, a, b):
    """tl.where, tile by tile."""
    out = ()
    for k in tl.static_range(len(a)):
        out = out + (tl.where(condition, a[k], b[k]),)
    return out


@triton.jit
def zeros_like(tiles):
    out = ()
    for k in tl.static_range(len(tiles)):
        out = out + (tl.zeros_like(tiles[k]),)
    return out


@triton.jit
def load_tiles(first, offsets, stride, mask, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """COUNT tiles, `stride` elements apart, in DTYPE; zero outside of the mask."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.load(first + k * stride + offsets, mask=mask, other=0.0).to(DTYPE),)
    return out


@triton.jit
def storable(saved, DTYPE: tl.constexpr, UNBOUNDED: tl.constexpr):
    """What a cell saves, within the range of DTYPE: those that are UNBOUNDED may lie beyond float16's."""
    out = ()
    for k in tl.static_range(len(saved)):
        value = saved[k]
        if UNBOUNDED[k] and tl.float16 == DTYPE:
            value = tl.where(value < -_LARGEST_HALF, -_LARGEST_HALF, value)
            value = tl.where(value > _LARGEST_HALF, _LARGEST_HALF, value)
        out = out + (value,)
    return out


@triton.jit
def gate_rows(COUNT: tl.constexpr, DP: tl.constexpr):
    """(COUNT·DP, 1) each: the gate and the unit of every row of a wide tile.

    Of four gates, rows are ordered (gate // 2, unit // 8, gate % 2, unit % 8): the accumulators of a tensor core's
    product leave all four gates of a unit in one thread, and `split_rows` moves nothing.
    """
    row = tl.arange(0, COUNT * DP)[:, None]
    if COUNT == 1:
        return row * 0, row
    else:
        return row // (2 * DP) * 2 + row // 8 % 2, row // 16 % (DP // 8) * 8 + row % 8


@triton.jit
def split_rows(wide, COUNT: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """(COUNT·DP, BT) in the order of `gate_rows` -> COUNT tiles (DP, BT)."""
    if COUNT == 1:
        return (wide,)
    else:
        wide = tl.permute(tl.reshape(wide, (2, DP // 8, 2, 8, BT)), (1, 3, 4, 0, 2))
        even, odd = tl.split(wide)
        a, c = tl.split(even)
        b, d = tl.split(odd)
        return (
            tl.reshape(a, (DP, BT)),
            tl.reshape(b, (DP, BT)),
            tl.reshape(c, (DP, BT)),
            tl.reshape(d, (DP, BT)),
        )


@triton.jit
def join_rows(tiles, COUNT: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """The inverse of `split_rows`."""
    if COUNT == 1:
        return tiles[0]
    else:
        wide = tl.join(tl.join(tiles[0], tiles[2]), tl.join(tiles[1], tiles[3]))
        wide = tl.permute(tl.reshape(wide, (DP // 8, 8, BT, 2, 2)), (3, 0, 4, 1, 2))
        return tl.reshape(wide, (4 * DP, BT))


@triton.jit
def split_columns(wide, COUNT: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """(BT, COUNT·DP), gate after gate -> COUNT tiles (BT, DP)."""
    if COUNT == 1:
        return (wide,)
    else:
        even, odd = tl.split(tl.permute(tl.reshape(wide, (BT, 2, 2, DP)), (0, 3, 1, 2)))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        return a, b, c, d


@triton.jit
def join_columns(tiles, COUNT: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """The inverse of `split_columns`."""
    if COUNT == 1:
        return tiles[0]
    else:
        wide = tl.join(tl.join(tiles[0], tiles[2]), tl.join(tiles[1], tiles[3]))
        return tl.reshape(tl.permute(wide, (0, 2, 3, 1)), (BT, 4 * DP))
