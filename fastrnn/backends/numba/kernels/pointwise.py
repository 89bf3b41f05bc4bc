"""A cell's single step between products that somebody else computes: forward, and its derivative."""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.cells import CellKernel
from fastrnn.backends.numba.kernels.dots import stack_memory
from fastrnn.backends.numba.kernels.simd import address, lanes, load, load_some, store, store_some, zeros


def pointwise_kernel(cell: CellKernel, gates: int, dtype: Any) -> Any:
    """The step of one cell and dtype, over a block of `Pointwise`."""
    step, has_c, saves = cell.step, cell.has_c, cell.saves
    gates_memory, states_memory = stack_memory(gates), stack_memory(2)

    def pointwise(pointer: Any) -> None:
        like = zeros(dtype)
        a = carray(pointer, 1)[0]
        gx, gh, states = gates_memory(like), gates_memory(like), states_memory(like)
        width = lanes(like)
        h, c = states, address(like, states, width)
        for row in range(a.batch):
            for unit in range(0, a.hidden, width):
                some = min(width, a.hidden - unit)
                at = row * a.hidden + unit
                for gate in range(gates):
                    source = (row * gates + gate) * a.hidden + unit
                    store(gx, gate * width, load_some(like, a.gx, source, some))
                    store(gh, gate * width, load_some(like, a.gh, source, some))
                store(h, 0, load_some(like, a.h, at, some))
                if has_c:
                    store(c, 0, load_some(like, a.c, at, some))
                saved = address(like, a.saved, row * saves * a.hidden + unit) if saves > 0 else 0
                store_some(a.h_new, at, step(like, gx, gh, h, c, saved, a.hidden, some), some)
                if has_c:
                    store_some(a.c_new, at, load(like, c, 0), some)

    return pointwise


def pointwise_backward_kernel(cell: CellKernel, dtype: Any) -> Any:
    """Its derivative, over a block of `PointwiseBackward`."""
    derivative, has_c, saves = cell.derivative, cell.has_c, cell.saves
    dc_memory = stack_memory(1)

    def pointwise_backward(pointer: Any) -> None:
        like = zeros(dtype)
        a = carray(pointer, 1)[0]
        dc = dc_memory(like)
        width = lanes(like)
        wide = max(saves, 1) * a.hidden
        for row in range(a.batch):
            for unit in range(0, a.hidden, width):
                some = min(width, a.hidden - unit)
                at = row * a.hidden + unit
                dh = load_some(like, a.dh, at, some) if a.dh != 0 else like
                if has_c:
                    store(dc, 0, load_some(like, a.dc, at, some) if a.dc != 0 else like)
                saved = address(like, a.saved, row * wide + unit)
                before, after = address(like, a.before, at), address(like, a.after, at)
                dgates = address(like, a.dgates, row * wide + unit)
                direct = derivative(like, dh, saved, a.hidden, before, after, dc, dgates, some)
                store_some(a.dh0, at, direct, some)
                if has_c:
                    store_some(a.dc0, at, load(like, dc, 0), some)

    return pointwise_backward
