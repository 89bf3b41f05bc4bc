"""What exp and log are made of beside arithmetic: constants by dtype, polynomials, powers of two in a number's bits."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastrnn.backends.numba.kernels.simd import Vector, multiply_add


def everywhere(vector: Vector, integer: int) -> Any:
    """An integer in every lane."""
    return ir.Constant(vector.integers, [integer] * vector.lanes)


def constant(values: dict[int, float]) -> Any:
    """An intrinsic: `like` -> the value for its number of bits, in every lane."""

    @intrinsic
    def value(typing: Any, like: Any) -> Any:
        vector = ir.Constant(like.ir, [values[like.bits]] * like.lanes)
        return like(like), lambda context, builder, sig, args: vector

    return value


def polynomial(coefficients: dict[int, tuple[float, ...]]) -> Any:
    """An intrinsic: x -> the polynomial with these coefficients, the highest power first, for each width in bits."""

    @intrinsic
    def horner(typing: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            first, *rest = (ir.Constant(x.ir, [value] * x.lanes) for value in coefficients[x.bits])
            for value in rest:
                first = multiply_add(builder, x, first, args[0], value)
            return first

        return x(x), emit

    return horner


MANTISSA_BITS = {32: 23, 64: 52}
ROUNDER = {bits: 1.5 * 2.0**mantissa for bits, mantissa in MANTISSA_BITS.items()}
"""Adding it to a small number rounds that to an integer n, which the sum's lowest bits hold."""
_ONE_BITS = {bits: ((1 << (bits - mantissa - 2)) - 1) << mantissa for bits, mantissa in MANTISSA_BITS.items()}
_SQRT_HALF_BITS = {32: 0x3F3504F3, 64: 0x3FE6A09E667F3BCD}
"""How 1 and the square root of a half read as integers."""


@intrinsic
def power_of_two(typing: Any, shifted: Any) -> Any:
    """2**n from n + ROUNDER: n moves from the lowest bits to the exponent's."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], shifted.integers)
        moved = builder.shl(bits, everywhere(shifted, MANTISSA_BITS[shifted.bits]))
        return builder.bitcast(builder.add(moved, everywhere(shifted, _ONE_BITS[shifted.bits])), shifted.ir)

    return shifted(shifted), emit


@intrinsic
def by_exponent(typing: Any, x: Any) -> Any:
    """x = 2**n m -> n + ROUNDER and m, which lies between the square roots of a half and of two; of normal x > 0."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mantissa, one, least = MANTISSA_BITS[x.bits], _ONE_BITS[x.bits], _SQRT_HALF_BITS[x.bits]
        rounder = builder.bitcast(ir.Constant(x.ir, [ROUNDER[x.bits]] * x.lanes), x.integers)
        moved = builder.add(builder.bitcast(args[0], x.integers), everywhere(x, one - least))
        exponent = builder.lshr(moved, everywhere(x, mantissa))
        shifted = builder.add(builder.sub(exponent, everywhere(x, one >> mantissa)), rounder)
        rest = builder.add(builder.and_(moved, everywhere(x, (1 << mantissa) - 1)), everywhere(x, least))
        parts = [builder.bitcast(part, x.ir) for part in (shifted, rest)]
        return context.make_tuple(builder, sig.return_type, parts)

    return types.UniTuple(x, 2)(x), emit
