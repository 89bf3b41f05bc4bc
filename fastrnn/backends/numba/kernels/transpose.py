"""Transposing blocks of lanes x lanes in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastrnn.backends.numba.kernels.simd import (
    INDEX,
    LANE,
    Vector,
    call,
    first_lanes,
    pointer,
    store_vector,
    suffix,
)


def _transposed(builder: Any, like: Vector, source: Any, row: Any, rows: Any, columns: Any) -> list[Any]:
    """The columns of a block of lanes x lanes whose rows lie at `source`, `row` apart, as vectors.

    Of the source only `rows` rows and `columns` columns exist, the rest counts as zeros. In registers: stage s
    exchanges the lanes whose numbers differ in bit s between rows whose numbers differ in it.
    """
    width = like.lanes
    zero = ir.Constant(like.ir, [0.0] * width)
    name = f"llvm.masked.load.{suffix(like)}.p0"
    mask = first_lanes(builder, like, columns)
    none = ir.Constant(mask.type, [0] * width)
    block = []
    for lane in range(width):
        at = pointer(builder, like, source, builder.mul(row, INDEX(lane)))
        at = builder.bitcast(at, like.ir.as_pointer())
        exists = builder.select(builder.icmp_signed(">", rows, INDEX(lane)), mask, none)
        block.append(call(builder, name, like.ir, at, LANE(like.bits // 8), exists, zero))
    stage = 1
    while stage < width:
        mask_type = ir.VectorType(LANE, width)
        low = ir.Constant(mask_type, [i if not i & stage else width + i - stage for i in range(width)])
        high = ir.Constant(mask_type, [i + stage if not i & stage else width + i for i in range(width)])
        for i in range(width):
            if not i & stage:
                a, b = block[i], block[i + stage]
                block[i] = builder.shuffle_vector(a, b, low)
                block[i + stage] = builder.shuffle_vector(a, b, high)
        stage *= 2
    return block


@intrinsic
def transpose(typing: Any, like: Any, source: Any, row: Any, rows: Any, columns: Any, target: Any, step: Any) -> Any:
    """Transposes a block of lanes x lanes: `target` + k step holds column k of the rows at `source`, `row` apart.

    Of the source only `rows` rows and `columns` columns exist, the rest counts as zeros; `columns` columns are stored.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source, row, rows, columns, target, step = args
        for lane, column in enumerate(_transposed(builder, like, source, row, rows, columns)):
            with builder.if_then(builder.icmp_signed(">", columns, INDEX(lane))):
                store_vector(builder, like, target, builder.mul(step, INDEX(lane)), column)
        return context.get_dummy_value()

    intp = types.intp
    return types.void(like, intp, intp, intp, intp, intp, intp), emit


@intrinsic
def transpose_some(
    typing: Any, like: Any, source: Any, row: Any, rows: Any, columns: Any, target: Any, step: Any
) -> Any:
    """`transpose`, which of each column stores `rows` numbers only."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source, row, rows, columns, target, step = args
        mask = first_lanes(builder, like, rows)
        name = f"llvm.masked.store.{suffix(like)}.p0"
        for lane, column in enumerate(_transposed(builder, like, source, row, rows, columns)):
            with builder.if_then(builder.icmp_signed(">", columns, INDEX(lane))):
                at = pointer(builder, like, target, builder.mul(step, INDEX(lane)))
                at = builder.bitcast(at, like.ir.as_pointer())
                call(builder, name, ir.VoidType(), column, at, LANE(like.bits // 8), mask)
        return context.get_dummy_value()

    intp = types.intp
    return types.void(like, intp, intp, intp, intp, intp, intp), emit
