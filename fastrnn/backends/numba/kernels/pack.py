"""The kernel that lays matrices out in panels, so that a tile reads them from one end to the other."""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.extents import extent
from fastrnn.backends.numba.kernels.inner import inner
from fastrnn.backends.numba.kernels.rows import clear_row
from fastrnn.backends.numba.kernels.simd import (
    address,
    lanes,
    load_some,
    store,
    store_some,
    take_ticket,
    zeros,
)
from fastrnn.backends.numba.kernels.transpose import transpose, transpose_some


@inner
def _pack_rows(like: Any, a: Any, matrix: int, first: int, target: int) -> None:
    """target[k, u, g, lane] = matrix[g rows + first + u lanes + lane, k], 0 past the gate's rows."""
    width = lanes(like)
    step = a.units * a.gates * width
    for u in range(a.units):
        unit = first + u * width
        for gate in range(a.gates):
            source = address(like, matrix, (gate * a.rows + unit) * a.source_row)
            to = address(like, target, (u * a.gates + gate) * width)
            for k in range(0, a.columns, width):
                at, columns = address(like, source, k), a.columns - k
                transpose(like, at, a.source_row, a.rows - unit, columns, address(like, to, k * step), step)


@inner
def _pack_columns(like: Any, a: Any, first: int, target: int) -> None:
    """target[k, u, lane] = source[k, first + u lanes + lane], 0 past the columns."""
    width = lanes(like)
    step = a.units * width
    for k in range(a.rows):
        for u in range(a.units):
            unit = first + u * width
            value = load_some(like, address(like, a.source, k * a.source_row + unit), 0, a.columns - unit)
            store(address(like, target, k * step + u * width), 0, value)


@inner
def _pack_heads(like: Any, a: Any, panel: int, target: int) -> None:
    """A panel of several heads' matrices, of square gates: the units of any other head are zeros to each.

    target[k, u, g, lane] where rows become lanes, else target[g, k, u, lane], k counting from the panel's first.
    """
    size, width = a.columns, lanes(like)
    wide = a.units * width
    first, count = extent(a.extents, panel)
    begin, end = panel * wide, min((panel + 1) * wide, a.heads * size)
    gates = a.rows // size if a.straight else a.gates
    matrix = gates * size * a.source_row
    if count == size and not a.straight and end - begin == wide:
        _pack_rows(like, a, address(like, a.source, first // size * matrix), begin - first, target)
        return
    clear_row(like, target, count * gates * wide)
    for u in range(a.units):
        vector = begin + u * width
        unit, beyond = vector, min(vector + width, end)
        while unit < beyond:
            head = unit // size
            some = min((head + 1) * size, beyond) - unit
            of_head, own = address(like, a.source, head * matrix), unit - head * size
            for gate in range(gates):
                if a.straight:
                    to = address(like, target, (gate * count + head * size - first) * wide + unit - begin)
                    for k in range(size):
                        value = load_some(like, of_head, (gate * size + k) * a.source_row + own, some)
                        store_some(to, k * wide, value, some)
                else:
                    step = gates * wide
                    lane = (u * gates + gate) * width + unit - vector
                    to = address(like, target, (head * size - first) * step + lane)
                    source = address(like, of_head, (gate * size + own) * a.source_row)
                    for k in range(0, size, width):
                        at, columns = address(like, source, k), size - k
                        transpose_some(like, at, a.source_row, some, columns, address(like, to, k * step), step)
            unit += some


def pack_kernel(dtype: Any) -> Any:
    """The kernel for one dtype, over blocks of `PackShape` and `PackAddresses`."""

    def pack(pointer: Any) -> None:
        like = zeros(dtype)
        jobs = carray(pointer, 1)[0].jobs
        blocks = carray(pointer, jobs)
        while True:
            task = take_ticket(blocks[0].counter)
            if task >= blocks[0].tasks:
                break
            job = 0
            while task >= blocks[job].panels:
                task -= blocks[job].panels
                job += 1
            a = blocks[job]
            width = a.units * lanes(like)
            target = address(like, blocks[0].memory + a.target_at, task * a.depth * width * a.gates)
            if a.heads > 1:
                _pack_heads(like, a, task, target)
            elif a.straight:
                _pack_columns(like, a, task * width, target)
            else:
                _pack_rows(like, a, a.source, task * width, target)

    return pack
