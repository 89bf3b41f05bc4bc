"""Products of matrices that lie as torch keeps them, row after row: as many dot products at once as a vector has lanes.

What a panel's tile computes from weights that were laid out for it (`tile.py`), this computes without. Each number of
the matrix is loaded for each row of the batch, so that it pays where there are few rows and few steps.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastrnn.backends.numba.kernels.simd import (
    INDEX,
    LANE,
    Vector,
    call,
    first_lanes,
    load_vector,
    multiply_add,
    pointer,
    store_vector,
    suffix,
)

GROUP = 8
"""Rows of the matrix that are multiplied at a time: x86-64 has 16 registers for their addresses and all else."""


def _group_sums(builder: Any, vector: Vector, x: Any, k: Any, rows: list[Any]) -> list[Any]:
    """For each address in `rows`, a vector whose lanes add up to the dot product with x, both k long."""
    zero = ir.Constant(vector.ir, [0.0] * vector.lanes)
    sums = [cgutils.alloca_once_value(builder, zero) for _ in rows]
    width = INDEX(vector.lanes)
    whole = builder.sdiv(k, width)
    with cgutils.for_range(builder, whole, intp=INDEX) as loop:
        at = builder.mul(loop.index, width)
        number = load_vector(builder, vector, x, at)
        for row, total in zip(rows, sums, strict=True):
            product = multiply_add(builder, vector, number, load_vector(builder, vector, row, at), builder.load(total))
            builder.store(product, total)
    at = builder.mul(whole, width)
    rest = builder.sub(k, at)
    with builder.if_then(builder.icmp_signed(">", rest, INDEX(0))):
        mask, name = first_lanes(builder, vector, rest), f"llvm.masked.load.{suffix(vector)}.p0"

        def some(address: Any) -> Any:
            place = builder.bitcast(pointer(builder, vector, address, at), vector.ir.as_pointer())
            return call(builder, name, vector.ir, place, LANE(vector.bits // 8), mask, zero)

        number = some(x)
        for row, total in zip(rows, sums, strict=True):
            builder.store(multiply_add(builder, vector, number, some(row), builder.load(total)), total)
    return [builder.load(total) for total in sums]


def _added_up(builder: Any, vector: Vector, sums: list[Any]) -> Any:
    """Lane i holds the sum of all lanes of `sums[i]`, of which there are as many as lanes.

    Stage s adds to the lanes whose number lacks bit s those that have it, of two vectors at once, and so halves them.
    """
    width, stage = vector.lanes, 1
    kind = ir.VectorType(LANE, width)
    while len(sums) > 1:
        low = ir.Constant(kind, [i if not i & stage else width + i - stage for i in range(width)])
        high = ir.Constant(kind, [i + stage if not i & stage else width + i for i in range(width)])
        sums = [
            builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))
            for a, b in zip(sums[0::2], sums[1::2], strict=True)
        ]
        stage *= 2
    return sums[0]


def _dots_function(module: Any, vector: Vector) -> Any:
    """The function (rows, x, k, w, w_row, out) in this LLVM module; see `dots`."""
    name = f"fastrnn_dots_{vector.name}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INDEX] * 6), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    rows, x, k, w, w_row, out = function.args
    last = builder.sub(rows, INDEX(1))
    bytes_row = builder.mul(w_row, INDEX(vector.bits // 8))
    sums: list[Any] = []
    for first in range(0, vector.lanes, GROUP):
        addresses = []
        for row in range(first, min(first + GROUP, vector.lanes)):
            exists = builder.icmp_signed("<", INDEX(row), rows)
            addresses.append(builder.add(w, builder.mul(bytes_row, builder.select(exists, INDEX(row), last))))
        sums += _group_sums(builder, vector, x, k, addresses)
    store_vector(builder, vector, out, INDEX(0), _added_up(builder, vector, sums))
    builder.ret_void()
    return function


@intrinsic
def dots(typing: Any, like: Any, rows: Any, x: Any, k: Any, w: Any, w_row: Any, out: Any) -> Any:
    """Stores a vector at `out`: lane i is row i of the matrix at `w` times the k numbers at `x`.

    Rows are `w_row` elements apart. There are `rows` of them, at least one; the lanes beyond repeat the last.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.call(_dots_function(builder.module, like), args[1:])
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 6), emit


def stack_memory(vectors: int) -> Any:
    """An intrinsic: `like` -> the address of memory for so many vectors, which lives until the function returns."""

    @intrinsic
    def memory(typing: Any, like: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            with builder.goto_entry_block():
                place = builder.alloca(like.ir, size=INDEX(vectors))
            place.align = like.bits * like.lanes // 8
            return builder.ptrtoint(place, INDEX)

        return types.intp(like), emit

    return memory
