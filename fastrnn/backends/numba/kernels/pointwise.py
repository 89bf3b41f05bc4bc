"""A cell's single step between products that somebody else computes: forward, and its derivative."""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.cell_kernel import CellKernel, DerivativeAt, StepAt
from fastrnn.backends.numba.kernels.dots import stack_memory
from fastrnn.backends.numba.kernels.simd import address, lanes, load_some, store, store_some, zeros
from fastrnn.backends.numba.kernels.states import other_states


def pointwise_kernel(cell: CellKernel, dtype: Any) -> Any:
    """The step of one cell and dtype, over a block of `Pointwise`."""
    step, saves, inputs, others = cell.step, cell.saved, cell.inputs, other_states(cell.states)
    x_gates, u_gates = cell.x_gates, cell.u_gates
    x_memory, u_memory, states_memory = stack_memory(x_gates), stack_memory(u_gates), stack_memory(cell.states)

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
                others.take_vector(like, a.c, at, c, width, some)
                saved = address(like, a.saved, row * saves * a.hidden + unit) if saves > 0 else 0
                places = StepAt(
                    gx=gx,
                    gh=gh,
                    h=h,
                    others=c,
                    others_apart=width,
                    parameters=address(like, a.parameters, unit),
                    inputs=address(like, a.inputs, row * inputs * a.hidden + unit),
                    saved=saved,
                    block=a.hidden,
                )
                store_some(a.h_new, at, step(like, places, some), some)
                others.put(like, c, width, a.c_new, at, some)

    return pointwise


def pointwise_backward_kernel(cell: CellKernel, dtype: Any) -> Any:
    """Its derivative, over a block of `PointwiseBackward`."""
    derivative, saves, blocks = cell.derivative, cell.saved, cell.blocks
    inputs, others = cell.inputs, other_states(cell.states)
    d_memory, before_memory, after_memory = (stack_memory(cell.states - 1) for _ in range(3))
    unread_memory = stack_memory(cell.parameters)

    def pointwise_backward(pointer: Any) -> None:
        like = zeros(dtype)
        a = carray(pointer, 1)[0]
        dc = d_memory(like)
        width = lanes(like)
        for row in range(a.batch):
            for unit in range(0, a.hidden, width):
                some = min(width, a.hidden - unit)
                at = row * a.hidden + unit
                dh = load_some(like, a.dh, at, some) if a.dh != 0 else like
                others.fetch_vector(like, a.dc, at, dc, width, some)
                places = DerivativeAt(
                    saved=address(like, a.saved, row * saves * a.hidden + unit),
                    h_before=address(like, a.h_before, at),
                    h_after=address(like, a.h_after, at),
                    others_before=others.vectors(like, a.c_before, at, before_memory(like), some),
                    before_apart=width,
                    others_after=others.vectors(like, a.c_after, at, after_memory(like), some),
                    after_apart=width,
                    d_others=dc,
                    d_apart=width,
                    parameters=address(like, a.parameters, unit),
                    inputs=address(like, a.inputs, row * inputs * a.hidden + unit),
                    blocks=address(like, a.dgates, row * blocks * a.hidden + unit),
                    block=a.hidden,
                    d_parameters=unread_memory(like),
                    d_parameters_apart=width,
                )
                store_some(a.dh0, at, derivative(like, dh, places, some), some)
                others.put(like, dc, width, a.dc0, at, some)

    return pointwise_backward
