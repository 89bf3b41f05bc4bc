"""Tuples of tiles: loading, selecting, and wide tiles of up to four narrow ones without leaving the registers.

What lies side by side in memory, gates, blocks or saved values, is taken four at a time as one wide tile; what is left
in the end is one of one, two or four, three being padded to four. COUNT is how many there are from a wide tile's first
on: more than four are four. The per-step kernels have no wide tiles.
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
def operand(tile, unit, D: tl.constexpr, DP: tl.constexpr, FINITE: tl.constexpr, DTYPE: tl.constexpr):
    """What a product sums over units. Those beyond D meet weights of zero, which NaN and infinity must not."""
    if not FINITE and D < DP:
        tile = tl.where(unit < D, tile, 0.0)
    return tile.to(DTYPE)


@triton.jit
def multiplied(tile, mask):
    """What recurrent dropout's mask leaves of h before its product, or of a gradient after it; all without one."""
    if mask is None:
        return tile
    else:
        return tile * mask


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
def load_parameters(parameters, at, unit, H, inside, D: tl.constexpr, P: tl.constexpr, STATE: tl.constexpr):
    """The cell's parameters, a tile each as of all else: a step may hand one on as it is."""
    out = ()
    if parameters is not None:
        rows = load_tiles(parameters + at, unit, H, unit < D, P, STATE)
        for k in tl.static_range(P):
            out = out + (tl.broadcast_to(rows[k], inside.shape),)
    return out


@triton.jit
def load_each(tensors, at, offsets, inside, STATE: tl.constexpr):
    """A tile of each of a tuple of tensors, which may be None."""
    out = ()
    if tensors is not None:
        for k in tl.static_range(len(tensors)):
            out = out + (tl.load(tensors[k] + at + offsets, mask=inside, other=0.0).to(STATE),)
    return out


@triton.jit
def gate_rows(COUNT: tl.constexpr, DP: tl.constexpr):
    """(rows, 1) each: the gate and the unit of every row of a wide tile (rows, batch).

    Rows are ordered (gate // 2, unit // 8, gate % 2, unit % 8): the accumulators of a tensor core's product leave all
    gates of a unit in one thread, and `split_rows` moves nothing.
    """
    row = tl.arange(0, (COUNT if COUNT < 3 else 4) * DP)[:, None]
    if COUNT == 1:
        return row * 0, row
    else:
        return row // (2 * DP) * 2 + row // 8 % 2, row // 16 % (DP // 8) * 8 + row % 8


@triton.jit
def split_rows(wide, COUNT: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """A wide tile in the order of `gate_rows` -> tiles (DP, BT)."""
    if COUNT == 1:
        return (wide,)
    elif COUNT == 2:
        a, b = tl.split(tl.permute(tl.reshape(wide, (DP // 8, 2, 8, BT)), (0, 2, 3, 1)))
        return tl.reshape(a, (DP, BT)), tl.reshape(b, (DP, BT))
    else:
        wide = tl.permute(tl.reshape(wide, (2, DP // 8, 2, 8, BT)), (1, 3, 4, 0, 2))
        even, odd = tl.split(wide)
        a, c = tl.split(even)
        b, d = tl.split(odd)
        tiles = tl.reshape(a, (DP, BT)), tl.reshape(b, (DP, BT)), tl.reshape(c, (DP, BT))
        return tiles if COUNT == 3 else tiles + (tl.reshape(d, (DP, BT)),)


@triton.jit
def join_rows(tiles, FIRST: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """The inverse of `split_rows`, of the tiles from FIRST on."""
    COUNT: tl.constexpr = len(tiles) - FIRST
    if COUNT == 1:
        return tiles[FIRST]
    elif COUNT == 2:
        wide = tl.reshape(tl.join(tiles[FIRST], tiles[FIRST + 1]), (DP // 8, 8, BT, 2))
        return tl.reshape(tl.permute(wide, (0, 3, 1, 2)), (2 * DP, BT))
    else:
        wide = tl.permute(tl.reshape(_join_four(tiles, FIRST), (DP // 8, 8, BT, 2, 2)), (3, 0, 4, 1, 2))
        return tl.reshape(wide, (4 * DP, BT))


@triton.jit
def split_columns(wide, COUNT: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """A wide tile (BT, columns), gate after gate -> tiles (BT, DP)."""
    if COUNT == 1:
        return (wide,)
    elif COUNT == 2:
        return tl.split(tl.permute(tl.reshape(wide, (BT, 2, DP)), (0, 2, 1)))
    else:
        even, odd = tl.split(tl.permute(tl.reshape(wide, (BT, 2, 2, DP)), (0, 3, 1, 2)))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        return (a, b, c) if COUNT == 3 else (a, b, c, d)


@triton.jit
def join_columns(tiles, FIRST: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """The inverse of `split_columns`, of the tiles from FIRST on."""
    COUNT: tl.constexpr = len(tiles) - FIRST
    if COUNT == 1:
        return tiles[FIRST]
    elif COUNT == 2:
        wide = tl.join(tiles[FIRST], tiles[FIRST + 1])
        return tl.reshape(tl.permute(wide, (0, 2, 1)), (BT, 2 * DP))
    else:
        return tl.reshape(tl.permute(_join_four(tiles, FIRST), (0, 2, 3, 1)), (BT, 4 * DP))


@triton.jit
def _join_four(tiles, FIRST: tl.constexpr):
    """(..., 2, 2): four tiles, or three and one of them again."""
    LAST: tl.constexpr = FIRST + 3 if len(tiles) > FIRST + 3 else FIRST
    return tl.join(tl.join(tiles[FIRST], tiles[FIRST + 2]), tl.join(tiles[FIRST + 1], tiles[LAST]))
