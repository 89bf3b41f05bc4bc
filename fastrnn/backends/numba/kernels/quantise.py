"""Rows of float32 as 16-bit integers with a scale, which products with int8 take."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastrnn.backends.numba.kernels.few_rows import SHORT, typed
from fastrnn.backends.numba.kernels.inner import inner
from fastrnn.backends.numba.kernels.series import ROUNDER
from fastrnn.backends.numba.kernels.simd import call, lanes, load_some, magnitude, suffix


@intrinsic
def _largest(typing: Any, x: Any, y: Any) -> Any:
    """The larger of two vectors without signs, lane by lane; NaN where either is NaN, which as an integer is more than
    any number."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (builder.bitcast(v, x.integers) for v in args)
        return builder.select(builder.icmp_signed(">", a, b), *args)

    return x(x, x), emit


@intrinsic
def _largest_lane(typing: Any, x: Any) -> Any:
    """The largest of a vector without signs, NaN if there is one."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        integer, bits = ir.IntType(x.bits), builder.bitcast(args[0], x.integers)
        name = f"llvm.vector.reduce.smax.{suffix(x).replace('f', 'i')}"
        return builder.bitcast(call(builder, name, integer, bits), x.element)

    return types.float32(x), emit


@intrinsic
def _store_rounded(typing: Any, base: Any, index: Any, x: Any) -> Any:
    """Rounds a vector of numbers within those of 16 bits to integers, as int16 number `index` and those after it."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rounder = ir.Constant(x.ir, [ROUNDER[x.bits]] * x.lanes)
        bits = builder.bitcast(builder.fadd(args[2], rounder), x.integers)
        kind = ir.VectorType(SHORT, x.lanes)
        builder.store(builder.trunc(bits, kind), typed(builder, args[0], args[1], kind), align=2)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, x), emit


@intrinsic
def _put_number(typing: Any, base: Any, index: Any, number: Any) -> Any:
    """Writes a float32 as number `index` at an address."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], typed(builder, args[0], args[1], ir.FloatType()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), emit


@inner
def quantise(like: Any, source: int, count: int, target: int, scale_at: int, row: int, limit: int) -> None:
    """A row of float32 as int16 -limit .. limit, padded to whole vectors, and its scale as number `row` at `scale_at`.

    Of a row with a number that is none, or infinite, the scale is NaN, and so is all that is made of it.
    """
    width = lanes(like)
    top = like
    for k in range(0, count, width):
        top = _largest(top, magnitude(load_some(like, source, k, count - k)))
    most = _largest_lane(top)
    inverse, scale = 0.0, 0.0
    if most > 0:
        inverse, scale = limit / most, most / limit
    if not most < float("inf"):
        inverse, scale = 0.0, float("nan")
    elif not inverse < 1e38:  # numbers so small that their scale is none
        inverse, scale = 0.0, 0.0
    _put_number(scale_at, row, scale)
    for k in range(0, count, width):
        numbers = load_some(like, source, k, count - k) * inverse
        _store_rounded(target, k, numbers if inverse > 0 else like)
