"""Products of few rows with weights in 32, 16 or 8 bits: `tile.py`'s where weights are read once and nothing waits.

A panel is wide enough that one row keeps both multipliers busy. Its vectors lie two by two, each pair of them K-major:
more rows take fewer vectors at a time, for all of K, and still read memory from one end to the other. Nothing is asked
for ahead: up to 2 MB the processor does that as well by itself, and small layers lose a tenth by it.

float16 becomes float32 as it is loaded. int8 is multiplied with numbers of 16 bits, two of K at a time, which lie side
by side, into sums of 32: x86 has an instruction for both products of a pair and their sum (`vpmaddwd`), and with VNNI
one that adds it as well (`vpdpwssd`), which LLVM finds. A weight is a row's scale times -127 .. 127; a row of numbers
has a scale of its own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastrnn.backends.numba.geometry import divide_up
from fastrnn.backends.numba.kernels.inner import inner
from fastrnn.backends.numba.kernels.series import everywhere
from fastrnn.backends.numba.kernels.simd import (
    INDEX,
    LANE,
    Vector,
    address,
    call,
    cpu_features,
    is_arm,
    is_x86,
    lanes,
    load_vector,
    multiply_add,
    pointer,
    register_count,
    splat,
    store_vector,
)
from fastrnn.backends.numba.kernels.tile import ROWS_WIDE, divided, emitted_function, share

FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"
_BYTE, SHORT, _HALF = ir.IntType(8), ir.IntType(16), ir.HalfType()
_PAIR = 2
"""Numbers of K that int8 products take at a time."""
_BESIDE = 2
"""Vectors that lie side by side."""
_HALF_TO_FLOAT = 2.0**112
"""A half's exponent and fraction, as those of a float, are that much too small."""
FEW = 3
"""Rows of a tile that has all of a panel's vectors in registers, or most of them."""


def _most(weights: str) -> int:
    """Rows of a tile that has two of its vectors."""
    return min(ROWS_WIDE, (register_count() - _beside(weights)) // _BESIDE - 1)


def _parts(weights: str, vecs: int, rows: int) -> list[range]:
    """The vectors of a panel, as so many rows do them at a time. A weight of one row needs no register."""
    room = register_count() - _beside(weights)
    pairs = divide_up(max(1, vecs), _BESIDE)
    return [
        range(_BESIDE * part.start, min(vecs, _BESIDE * part.stop))
        for part in divided(pairs, (room - 1 if rows == 1 else room // (rows + 1)) // _BESIDE)
    ]


def _at(builder: Any, vector: Vector, k: Any, v: int, apart: Any) -> Any:
    """Where in a panel vector number `v` of number `k` is: pairs of vectors lie so far apart."""
    own = builder.add(builder.mul(k, INDEX(_BESIDE * vector.lanes)), INDEX(v % _BESIDE * vector.lanes))
    return builder.add(builder.mul(apart, INDEX(v // _BESIDE)), own)


def _beside(weights: str) -> int:
    """The registers besides sums and weights: a number of the row, and a product or a weight that becomes wider."""
    return 2 if weights == FLOAT32 else 3


def typed(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    """A pointer to something of a type at element `index`, of that type's own elements, of what lies at an address."""
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    at = builder.gep(builder.inttoptr(address, element.as_pointer()), [index])
    return builder.bitcast(at, kind.as_pointer())


def _load_half(builder: Any, vector: Vector, w: Any, index: Any) -> Any:
    """A vector of float16, as float32."""
    if "f16c" in cpu_features() or is_arm():
        halves = builder.load(typed(builder, w, index, ir.VectorType(_HALF, vector.lanes)), align=2)
        return builder.fpext(halves, vector.ir)
    bits = builder.load(typed(builder, w, index, ir.VectorType(SHORT, vector.lanes)), align=2)
    wide = builder.zext(bits, vector.integers)
    size = builder.shl(builder.and_(wide, everywhere(vector, 0x7FFF)), everywhere(vector, 13))
    scale = ir.Constant(vector.ir, [_HALF_TO_FLOAT] * vector.lanes)
    sign = builder.shl(builder.and_(wide, everywhere(vector, 0x8000)), everywhere(vector, 16))
    value = builder.bitcast(builder.fmul(builder.bitcast(size, vector.ir), scale), vector.integers)
    return builder.bitcast(builder.or_(value, sign), vector.ir)


def _load_pairs(builder: Any, vector: Vector, w: Any, index: Any) -> Any:
    """Twice a vector's lanes of int8, as int16."""
    pairs = _PAIR * vector.lanes
    narrow = builder.load(typed(builder, w, index, ir.VectorType(_BYTE, pairs)), align=1)
    return builder.sext(narrow, ir.VectorType(SHORT, pairs))


_SUMS_OF_PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
"""x86's instruction, by lanes."""


def _sums_of_pairs(builder: Any, vector: Vector, x: Any, y: Any) -> Any:
    """x[2i] y[2i] + x[2i + 1] y[2i + 1] in 32 bits, of int16."""
    if "avx512bw" in cpu_features() if vector.lanes == 16 else is_x86():
        return call(builder, _SUMS_OF_PAIRS[vector.lanes], vector.integers, x, y)
    undefined = ir.Constant(x.type, ir.Undefined)
    products = []
    for first in range(_PAIR):
        lanes = ir.Constant(ir.VectorType(LANE, vector.lanes), [_PAIR * i + first for i in range(vector.lanes)])
        wide = [builder.sext(builder.shuffle_vector(v, undefined, lanes), vector.integers) for v in (x, y)]
        products.append(builder.mul(*wide))
    return builder.add(*products)


def _emit_floats(builder: Any, vector: Vector, rows: int, vecs: int, weights: str, arguments: Any) -> None:
    bias, a, a_row, w, apart, k, out, out_row, _, _ = arguments
    width, load = vector.lanes, load_vector if weights == FLOAT32 else _load_half
    numbers = [pointer(builder, vector, a, builder.mul(a_row, INDEX(row))) for row in range(rows)]
    for part in _parts(weights, vecs, rows):
        first = [load_vector(builder, vector, bias, INDEX(v * width)) for v in part]
        sums = [[cgutils.alloca_once_value(builder, value) for value in first] for _ in range(rows)]
        with cgutils.for_range(builder, k, intp=INDEX) as loop:
            loaded = [load(builder, vector, w, _at(builder, vector, loop.index, v, apart)) for v in part]
            for row in range(rows):
                factor = splat(builder, builder.load(builder.gep(numbers[row], [loop.index])), width)
                for weight, total in zip(loaded, sums[row], strict=True):
                    builder.store(multiply_add(builder, vector, factor, weight, builder.load(total)), total)
        for row in range(rows):
            start = builder.mul(out_row, INDEX(row))
            for v, total in zip(part, sums[row], strict=True):
                store_vector(builder, vector, out, builder.add(start, INDEX(v * width)), builder.load(total))


def _emit_integers(builder: Any, vector: Vector, rows: int, vecs: int, weights: str, arguments: Any) -> None:
    bias, a, a_row, w, apart, k, out, out_row, a_scales, scales = arguments
    width = vector.lanes
    zero, pairs = everywhere(vector, 0), ir.VectorType(SHORT, _PAIR * width)
    count = builder.sdiv(builder.add(k, INDEX(_PAIR - 1)), INDEX(_PAIR))
    two_of_k, apart_of_pairs = INDEX(_PAIR), builder.sdiv(apart, INDEX(_PAIR))
    starts = [builder.mul(a_row, INDEX(row)) for row in range(rows)]
    for part in _parts(weights, vecs, rows):
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in part] for _ in range(rows)]
        with cgutils.for_range(builder, count, intp=INDEX) as loop:
            first = builder.mul(loop.index, INDEX(_PAIR))
            loaded = [
                _load_pairs(
                    builder, vector, w, builder.mul(_at(builder, vector, loop.index, v, apart_of_pairs), two_of_k)
                )
                for v in part
            ]
            for row in range(rows):
                two = builder.load(
                    builder.bitcast(typed(builder, a, builder.add(starts[row], first), SHORT), LANE.as_pointer()),
                    align=2,
                )
                factor = builder.bitcast(splat(builder, two, width), pairs)
                for weight, total in zip(loaded, sums[row], strict=True):
                    more = _sums_of_pairs(builder, vector, factor, weight)
                    builder.store(builder.add(builder.load(total), more), total)
        for row in range(rows):
            start = builder.mul(out_row, INDEX(row))
            scale = splat(builder, builder.load(pointer(builder, vector, a_scales, INDEX(row))), width)
            for v, total in zip(part, sums[row], strict=True):
                here = INDEX(v * width)
                both = builder.fmul(scale, load_vector(builder, vector, scales, here))
                number = builder.sitofp(builder.load(total), vector.ir)
                value = multiply_add(builder, vector, number, both, load_vector(builder, vector, bias, here))
                store_vector(builder, vector, out, builder.add(start, here), value)


def few_rows_product(weights: str, vecs: int, most: int) -> Any:
    """An intrinsic that writes out[r] = bias + sum over k of a[r, k] w[k], of weights in this format.

    All arguments but `like` are integers, as `tile.product`'s: `rows` is 1 .. `most`. Pairs of the panel's vectors lie
    `apart` numbers apart. With int8, `a` are rows of int16 and `a_row` counts those, a row times its number at
    `a_scales` being what it stands for; `scales` are those of the panel's weights, of which there are `vecs` vectors;
    of an odd k the number after the last one is multiplied with 0. Else neither scale is looked at.
    """
    emit = _emit_integers if weights == INT8 else _emit_floats

    @intrinsic
    def tile(
        typing: Any,
        like: Any,
        rows: Any,
        bias: Any,
        a: Any,
        a_row: Any,
        w: Any,
        apart: Any,
        k: Any,
        out: Any,
        out_row: Any,
        a_scales: Any,
        scales: Any,
    ) -> Any:
        def emit_call(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def emit_rows(builder: Any, rows: int, arguments: Any) -> None:
                emit(builder, like, rows, vecs, weights, arguments)

            name = f"few_{weights}_{like.name}_{vecs}_{most}"
            function = emitted_function(builder.module, name, most, 11, emit_rows)
            builder.call(function, args[1:])
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 11), emit_call

    return tile


def product_of_rows(weights: str, vecs: int) -> Any:
    """A function of the arguments of `few_rows_product`'s, for any number of rows.

    More than a few rows go over the panel pair by pair, so that a pair stays in the first-level cache for all of them.
    """
    few = few_rows_product(weights, vecs, FEW)
    most, vecs_each = _most(weights), vecs if vecs % _BESIDE else _BESIDE
    tile, parts = few_rows_product(weights, vecs_each, most), vecs // vecs_each
    number, weight = (2, 1) if weights == INT8 else (4, 2 if weights == FLOAT16 else 4)

    @inner
    def product(
        like: Any,
        rows: int,
        bias: int,
        a: int,
        a_row: int,
        w: int,
        apart: int,
        k: int,
        out: int,
        out_row: int,
        a_scales: int,
        scales: int,
    ) -> None:
        if rows <= FEW:
            few(like, rows, bias, a, a_row, w, apart, k, out, out_row, a_scales, scales)
            return
        blocks = (rows + most - 1) // most
        for part in range(parts):
            at, panel = part * vecs_each * lanes(like), w + part * apart * weight
            own_bias, own_scales = address(like, bias, at), address(like, scales, at)
            for block in range(blocks):
                first, count = share(rows, blocks, block)
                numbers, to = a + first * a_row * number, address(like, out, first * out_row + at)
                of_row = address(like, a_scales, first)
                tile(like, count, own_bias, numbers, a_row, panel, apart, k, to, out_row, of_row, own_scales)

    return product
