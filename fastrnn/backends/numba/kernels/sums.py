"""Sums over all units of a row: by lanes, and across them at the end. Their order is always the same."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastrnn.backends.numba.kernels.simd import LANE, first_lanes


@intrinsic
def first_of(typing: Any, x: Any, count: Any) -> Any:
    """The first `count` lanes, all of them where it is larger; zero in the others, whatever they hold."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(x.ir, [0.0] * x.lanes)
        return builder.select(first_lanes(builder, x, args[1]), args[0], zero)

    return x(x, types.intp), emit


@intrinsic
def total(typing: Any, x: Any) -> Any:
    """The sum of all lanes, in every lane: neighbours are added, then pairs, and so on."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found, apart, kind = args[0], 1, ir.VectorType(LANE, x.lanes)
        while apart < x.lanes:
            other = ir.Constant(kind, [lane ^ apart for lane in range(x.lanes)])
            found = builder.fadd(found, builder.shuffle_vector(found, found, other))
            apart *= 2
        return found

    return x(x), emit
