"""A cell's single step between products that somebody else computes: forward, and its derivative."""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.cell_kernel import CellKernel, DerivativeAt, StepAt
from fastrnn.backends.numba.kernels.dots import stack_memory
from fastrnn.backends.numba.kernels.inner import forced
from fastrnn.backends.numba.kernels.simd import address, lanes, load_some, store, store_some, zeros
from fastrnn.backends.numba.kernels.states import other_states


def pointwise_kernel(cell: CellKernel, dtype: Any) -> Any:
    """The step of one cell and dtype, over a block of `Pointwise`."""
    step, saves, inputs, others = cell.step, cell.saved, cell.inputs, other_states(cell.states)
    x_gates, u_gates, over_units, by_unit = cell.x_gates, cell.u_gates, cell.over_units, not cell.over_units
    x_memory, u_memory, states_memory = stack_memory(x_gates), stack_memory(u_gates), stack_memory(cell.states)

    @forced
    def places(of_row: Any, like: Any, unit: int) -> Any:
        """A vector of units, whose shares and states are copied to memory for one."""
        a, row, gx, gh, h = of_row
        width = lanes(like)
        some, at, c = min(width, a.hidden - unit), row * a.hidden + unit, address(like, h, width)
        x_row, u_row = row * x_gates * a.hidden + unit, row * u_gates * a.hidden + unit
        for gate in range(x_gates):
            store(gx, gate * width, load_some(like, a.gx, x_row + gate * a.hidden, some))
        for gate in range(u_gates):
            store(gh, gate * width, load_some(like, a.gh, u_row + gate * a.hidden, some))
        store(h, 0, load_some(like, a.h, at, some))
        others.take_vector(like, a.c, at, c, width, some)
        return StepAt(
            gx=gx,
            gh=gh,
            h=h,
            others=c,
            others_apart=width,
            parameters=address(like, a.parameters, unit),
            inputs=address(like, a.inputs, row * inputs * a.hidden + unit),
            saved=address(like, a.saved, row * saves * a.hidden + unit) if saves > 0 else 0,
            block=a.hidden,
        )

    @forced
    def finish(of_row: Any, like: Any, unit: int, at: Any, h: Any) -> None:
        a, row, _, _, _ = of_row
        some = min(lanes(like), a.hidden - unit)
        store_some(a.h_new, row * a.hidden + unit, h, some)
        others.put(like, at.others, lanes(like), a.c_new, row * a.hidden + unit, some)

    def pointwise(pointer: Any) -> None:
        like = zeros(dtype)
        a = carray(pointer, 1)[0]
        gx, gh, states = x_memory(like), u_memory(like), states_memory(like)
        for row in range(a.batch):
            of_row = a, row, gx, gh, states
            if over_units:
                step(like, places, finish, of_row, a.hidden, a.kept)
            if by_unit:
                for unit in range(0, a.hidden, lanes(like)):
                    at = places(of_row, like, unit)
                    some = min(lanes(like), a.hidden - unit)
                    finish(of_row, like, unit, at, step(like, at, some))

    return pointwise


def pointwise_backward_kernel(cell: CellKernel, dtype: Any) -> Any:
    """Its derivative, over a block of `PointwiseBackward`."""
    derivative, saves, blocks = cell.derivative, cell.saved, cell.blocks
    over_units, by_unit = cell.over_units, not cell.over_units
    inputs, others = cell.inputs, other_states(cell.states)
    d_memory, before_memory, after_memory = (stack_memory(cell.states - 1) for _ in range(3))
    unread_memory = stack_memory(cell.parameters)

    @forced
    def places(of_row: Any, like: Any, unit: int) -> Any:
        """dh and all else of a vector of units; states and their gradients are copied to memory for one."""
        a, row, dc, before, after, unread = of_row
        width, at = lanes(like), row * a.hidden + unit
        some = min(width, a.hidden - unit)
        dh = load_some(like, a.dh, at, some) if a.dh != 0 else like
        others.fetch_vector(like, a.dc, at, dc, width, some)
        return dh, DerivativeAt(
            saved=address(like, a.saved, row * saves * a.hidden + unit),
            h_before=address(like, a.h_before, at),
            h_after=address(like, a.h_after, at),
            others_before=others.vectors(like, a.c_before, at, before, some),
            before_apart=width,
            others_after=others.vectors(like, a.c_after, at, after, some),
            after_apart=width,
            d_others=dc,
            d_apart=width,
            parameters=address(like, a.parameters, unit),
            inputs=address(like, a.inputs, row * inputs * a.hidden + unit),
            blocks=address(like, a.dgates, row * blocks * a.hidden + unit),
            block=a.hidden,
            d_parameters=unread,
            d_parameters_apart=width,
        )

    @forced
    def finish(of_row: Any, like: Any, unit: int, at: Any, dh: Any) -> None:
        a, row, dc, _, _, _ = of_row
        some = min(lanes(like), a.hidden - unit)
        store_some(a.dh0, row * a.hidden + unit, dh, some)
        others.put(like, dc, lanes(like), a.dc0, row * a.hidden + unit, some)

    def pointwise_backward(pointer: Any) -> None:
        like = zeros(dtype)
        a = carray(pointer, 1)[0]
        dc, before, after, unread = d_memory(like), before_memory(like), after_memory(like), unread_memory(like)
        for row in range(a.batch):
            of_row = a, row, dc, before, after, unread
            if over_units:
                derivative(like, places, finish, of_row, a.hidden, a.kept)
            if by_unit:
                for unit in range(0, a.hidden, lanes(like)):
                    dh, at = places(of_row, like, unit)
                    some = min(lanes(like), a.hidden - unit)
                    finish(of_row, like, unit, at, derivative(like, dh, at, some))

    return pointwise_backward
