"""The kernel that lays matrices out in panels, so that a tile reads them from one end to the other."""

from __future__ import annotations

from typing import Any

from numba import carray, njit

from fastrnn.backends.numba.kernels.simd import (
    address,
    lanes,
    load_some,
    store,
    take_ticket,
    zeros,
)
from fastrnn.backends.numba.kernels.transpose import transpose


@njit(error_model="numpy")
def _pack_rows(like: Any, a: Any, memory: int, panel: int) -> None:
    """target[panel, k, u, g, lane] = source[g rows + (panel units + u) lanes + lane, k], 0 past the gate's rows."""
    width = lanes(like)
    step = a.units * a.gates * width
    target = address(like, memory + a.target_at, panel * a.columns * step)
    for u in range(a.units):
        unit = (panel * a.units + u) * width
        for gate in range(a.gates):
            source = address(like, a.source, (gate * a.rows + unit) * a.source_row)
            to = address(like, target, (u * a.gates + gate) * width)
            for k in range(0, a.columns, width):
                at, columns = address(like, source, k), a.columns - k
                transpose(like, at, a.source_row, a.rows - unit, columns, address(like, to, k * step), step)


@njit(error_model="numpy")
def _pack_columns(like: Any, a: Any, memory: int, panel: int) -> None:
    """target[panel, k, u, lane] = source[k, (panel units + u) lanes + lane], 0 past the columns."""
    width = lanes(like)
    step = a.units * width
    target = address(like, memory + a.target_at, panel * a.rows * step)
    for k in range(a.rows):
        for u in range(a.units):
            unit = (panel * a.units + u) * width
            value = load_some(like, address(like, a.source, k * a.source_row + unit), 0, a.columns - unit)
            store(address(like, target, k * step + u * width), 0, value)


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
            if blocks[job].straight:
                _pack_columns(like, blocks[job], blocks[0].memory, task)
            else:
                _pack_rows(like, blocks[job], blocks[0].memory, task)

    return pack
