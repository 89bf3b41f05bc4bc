"""The matrix product that all kernels share: a block of rows times one panel of weights, accumulators in registers.

A *panel* holds what belongs to `vecs` vectors of outputs, K-major: (K, vecs, lanes), contiguous. The whole K loop of a
tile is emitted as LLVM IR, once for each number of rows, as one function that is never inlined: whatever calls it, the
cells' kernels share one copy, and its results go through a buffer in the first-level cache.

A row's result does not depend on the tile it is computed in (K is summed in order, one accumulator an output), so that
results are bitwise the same however rows are split among tiles and threads.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastrnn.backends.numba.geometry import divide_up
from fastrnn.backends.numba.kernels.inner import forced
from fastrnn.backends.numba.kernels.simd import (
    INDEX,
    SECOND_LEVEL,
    Vector,
    address,
    fuses_multiply_add,
    load_vector,
    multiply_add,
    pointer,
    prefetch,
    register_count,
    splat,
    store_vector,
)

AHEAD = 8
"""How many steps of K ahead weights are fetched into the first-level cache: 4 to 7 % less time at 256 and 512 units,
whose panels do not stay in it from one block of rows to the next; 16 and 32 steps gave less."""
LINE = 64
"""Bytes of a cache line."""
ROWS_WIDE = 8
"""The most rows of a tile: the function grows with the square of it, and 8 x 3 vectors fill the 32 registers."""


def tile_rows(vecs: int) -> int:
    """How many rows a tile has at most.

    A panel of many vectors is done by parts: its rows keep accumulators for a part only, so that four rows or more
    share the weights that are loaded. In 16 registers 6 rows of 2 vectors make 12 sums with 8 loads; 2 rows of 4 make 8
    with 6, too few to be under way while one takes its four cycles: 1.4 to 1.7 times as long (AVX2, 256 to 1024 units).
    A product that is never computed has no vectors.
    """
    room = register_count() - _beside()
    widest = len(divided(vecs, max(1, room // 5))[0])
    return min(ROWS_WIDE, room // widest - 1)


def parts(vecs: int, rows: int) -> list[range]:
    """The vectors of a panel, as a tile of so many rows does them at a time: sums and weights stay in registers."""
    return divided(vecs, (register_count() - _beside()) // (rows + 1))


def _beside() -> int:
    """The registers besides sums and weights: of a broadcast number and, where the processor does not add what it
    multiplies at once, of a product."""
    return 1 if fuses_multiply_add() else 2


def divided(vecs: int, most: int) -> list[range]:
    """A panel's vectors in as few parts of at most so many as there can be; one vector if it has none."""
    count = divide_up(max(1, vecs), most)
    ends = accumulate(share.py_func(max(1, vecs), count, part)[1] for part in range(count))
    return [range(first, end) for first, end in pairwise([0, *ends])]


def _add_products(builder: Any, vector: Vector, number: Any, weights: list[Any], sums: list[Any]) -> None:
    """Adds the number at a pointer times each vector of weights to the sums at pointers."""
    factor = splat(builder, builder.load(number), vector.lanes)
    for weight, total in zip(weights, sums, strict=True):
        builder.store(multiply_add(builder, vector, factor, weight, builder.load(total)), total)


def _emit_rows(builder: Any, vector: Vector, rows: int, vecs: int, arguments: Any) -> None:
    bias, a, a_row, w, k, out, out_row, soon, soon_step = arguments
    width = vector.lanes
    numbers = [pointer(builder, vector, a, builder.mul(a_row, INDEX(row))) for row in range(rows)]
    for number, part in enumerate(parts(vecs, rows)):
        first = [load_vector(builder, vector, bias, INDEX(v * width)) for v in part]
        sums = [[cgutils.alloca_once_value(builder, value) for value in first] for _ in range(rows)]
        with cgutils.for_range(builder, k, intp=INDEX) as loop:
            at = builder.mul(loop.index, INDEX(vecs * width))
            weights = [load_vector(builder, vector, w, builder.add(at, INDEX(v * width))) for v in part]
            ahead = builder.add(at, INDEX(AHEAD * vecs * width))
            for v in part[:: divide_up(LINE * 8, width * vector.bits)]:  # one of those in a line
                prefetch(builder, pointer(builder, vector, w, builder.add(ahead, INDEX(v * width))))
            line = builder.add(builder.add(soon, INDEX(number * LINE)), builder.mul(loop.index, soon_step))
            prefetch(builder, builder.inttoptr(line, ir.PointerType()), SECOND_LEVEL)
            for row in range(rows):
                _add_products(builder, vector, builder.gep(numbers[row], [loop.index]), weights, sums[row])
        for row in range(rows):
            start = builder.mul(out_row, INDEX(row))
            for v, total in zip(part, sums[row], strict=True):
                store_vector(builder, vector, out, builder.add(start, INDEX(v * width)), builder.load(total))


def _emit_outer_rows(builder: Any, vector: Vector, rows: int, vecs: int, arguments: Any) -> None:
    a, a_row, w, k, out, out_row = arguments
    width = vector.lanes
    zero = ir.Constant(vector.ir, [0.0] * width)
    for part in parts(vecs, rows):
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in part] for _ in range(rows)]
        with cgutils.for_range(builder, k, intp=INDEX) as loop:
            at = builder.mul(loop.index, INDEX(vecs * width))
            weights = [load_vector(builder, vector, w, builder.add(at, INDEX(v * width))) for v in part]
            numbers = pointer(builder, vector, a, builder.mul(loop.index, a_row))
            for row in range(rows):
                _add_products(builder, vector, builder.gep(numbers, [INDEX(row)]), weights, sums[row])
        for row in range(rows):
            start = builder.mul(out_row, INDEX(row))
            for v, total in zip(part, sums[row], strict=True):
                place = builder.add(start, INDEX(v * width))
                before = load_vector(builder, vector, out, place)
                store_vector(builder, vector, out, place, builder.fadd(before, builder.load(total)))


def emitted_function(module: Any, name: str, most: int, arguments: int, emit_rows: Any) -> Any:
    """The function (rows, ...) with so many arguments, 1 .. `most` rows, in this LLVM module.

    `emit_rows(builder, rows, arguments)` emits each number of rows, the arguments being those after it.
    """
    name = f"fastrnn_{name}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INDEX] * arguments), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    end = function.append_basic_block("end")
    switch = builder.switch(function.args[0], end)
    for rows in range(1, most + 1):
        block = function.append_basic_block(f"rows{rows}")
        switch.add_case(INDEX(rows), block)
        builder.position_at_end(block)
        emit_rows(builder, rows, function.args[1:])
        builder.branch(end)
    builder.position_at_end(end)
    builder.ret_void()
    return function


def _tile_function(module: Any, vector: Vector, vecs: int, kind: str, emit_rows: Any, arguments: int) -> Any:
    """A tile's function: see `emitted_function`."""

    def emit(builder: Any, rows: int, numbers: Any) -> None:
        emit_rows(builder, vector, rows, vecs, numbers)

    return emitted_function(module, f"{kind}_{vector.name}_{vecs}", tile_rows(vecs), arguments, emit)


def product(vecs: int) -> Any:
    """An intrinsic that writes out[r] = bias + sum over k of a[r, k] w[k].

    All arguments but `like` are integers. `rows` is 1 .. tile_rows(vecs); `bias` and the rows of `w` and `out` have
    `vecs` vectors; `a_row` and `out_row` are the distances of rows in elements, `a_row` may be negative or zero. With
    each k it asks for one more line of the cache from `soon` on, `soon_step` bytes apart: see `next_panel`.
    """

    @intrinsic
    def tile(
        typing: Any,
        like: Any,
        rows: Any,
        bias: Any,
        a: Any,
        a_row: Any,
        w: Any,
        k: Any,
        out: Any,
        out_row: Any,
        soon: Any,
        soon_step: Any,
    ) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            function = _tile_function(builder.module, like, vecs, "tile", _emit_rows, 10)
            builder.call(function, args[1:])
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 10), emit

    return tile


def outer_product(vecs: int) -> Any:
    """An intrinsic that adds to out[r] the sum over k of a[k, r] w[k]; arguments as in `product`, `a_row` is a k's."""

    @intrinsic
    def tile(typing: Any, like: Any, rows: Any, a: Any, a_row: Any, w: Any, k: Any, out: Any, out_row: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            function = _tile_function(builder.module, like, vecs, "outer", _emit_outer_rows, 7)
            builder.call(function, args[1:])
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 7), emit

    return tile


@forced
def share(total: int, parts: int, part: int) -> tuple[int, int]:
    """Part number `part` of `total` things split evenly -> its first and how many: 32 in 6 is 6, 6, 5, 5, 5, 5."""
    size, larger = total // parts, total % parts
    return part * size + min(part, larger), size + (1 if part < larger else 0)


@forced
def next_panel(like: Any, first: int, panel: int, panels: int, k: int, width: int) -> Any:
    """The address of the panel that follows number `panel` of those from `first` on, the last one's being the first."""
    return address(like, first, (panel + 1 if panel + 1 < panels else 0) * k * width)


@forced
def part_of_panel(like: Any, panel: int, k: int, width: int, tiles: int, tile: int) -> tuple[int, int]:
    """What tile number `tile` of `tiles` over one panel asks for of the panel at this address -> `soon`, `soon_step`.

    Weights that do not fit the second-level cache come from the third one this way while the tiles before are computed:
    5 to 15 % less time from 2 MB on. The fewer tiles, the more lines are left out between those that are asked for.
    """
    step = LINE * max(1, address(like, 0, width) // LINE // tiles)
    return panel + tile * k * step, step
