"""A cell's single step between products that somebody else computes: forward, and its derivative."""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.cell_kernel import CellKernel, DerivativeAt, StepAt
from fastrnn.backends.numba.kernels.dots import stack_memory
from fastrnn.backends.numba.kernels.simd import address, lanes, load, load_some, store, store_some, zeros


def pointwise_kernel(cell: CellKernel, dtype: Any) -> Any:
    """The step of one cell and dtype, over a block of `Pointwise`."""
    step, has_c, saves = cell.step, cell.states > 1, cell.saved
    x_gates, u_gates = cell.x_gates, cell.u_gates
    x_memory, u_memory, states_memory = stack_memory(x_gates), stack_memory(u_gates), stack_memory(2)

    def pointwise(pointer: Any) -> None:
        like = zeros(dtype)
        a = carray(pointer, 1)[0]
        gx, gh, states = x_memory(like), u_memory(like), states_memory(like)
        width = lanes(like)
        h, c = states, address(like, states, width)
        for row in range(a.batch):
            for unit in range(0, a.hidden, width):
                some = min(width, a.hidden - unit)
                at = row * a.hidden + unit
                x_row, u_row = row * x_gates * a.hidden + unit, row * u_gates * a.hidden + unit
                for gate in range(x_gates):
                    store(gx, gate * width, load_some(like, a.gx, x_row + gate * a.hidden, some))
                for gate in range(u_gates):
                    store(gh, gate * width, load_some(like, a.gh, u_row + gate * a.hidden, some))
                store(h, 0, load_some(like, a.h, at, some))
                if has_c:
                    store(c, 0, load_some(like, a.c, at, some))
                saved = address(like, a.saved, row * saves * a.hidden + unit) if saves > 0 else 0
                places = StepAt(
                    gx=gx,
                    gh=gh,
                    h=h,
                    others=c,
                    others_apart=0,
                    parameters=0,
                    inputs=0,
                    saved=saved,
                    block=a.hidden,
                )
                store_some(a.h_new, at, step(like, places, some), some)
                if has_c:
                    store_some(a.c_new, at, load(like, c, 0), some)

    return pointwise


def pointwise_backward_kernel(cell: CellKernel, dtype: Any) -> Any:
    """Its derivative, over a block of `PointwiseBackward`."""
    derivative, has_c, saves, blocks = cell.derivative, cell.states > 1, cell.saved, cell.blocks
    dc_memory = stack_memory(1)

    def pointwise_backward(pointer: Any) -> None:
        like = zeros(dtype)
        a = carray(pointer, 1)[0]
        dc = dc_memory(like)
        width = lanes(like)
        for row in range(a.batch):
            for unit in range(0, a.hidden, width):
                some = min(width, a.hidden - unit)
                at = row * a.hidden + unit
                dh = load_some(like, a.dh, at, some) if a.dh != 0 else like
                if has_c:
                    store(dc, 0, load_some(like, a.dc, at, some) if a.dc != 0 else like)
                before, after = address(like, a.before, at), address(like, a.after, at)
                places = DerivativeAt(
                    saved=address(like, a.saved, row * saves * a.hidden + unit),
                    h_before=before,
                    h_after=after,
                    others_before=before,
                    before_apart=0,
                    others_after=after,
                    after_apart=0,
                    d_others=dc,
                    d_apart=0,
                    parameters=0,
                    inputs=0,
                    blocks=address(like, a.dgates, row * blocks * a.hidden + unit),
                    block=a.hidden,
                )
                store_some(a.dh0, at, derivative(like, dh, places, some), some)
                if has_c:
                    store_some(a.dc0, at, load(like, dc, 0), some)

    return pointwise_backward
