"""The forward kernel for few rows and steps: weights are read where torch keeps them, nothing is laid out before.

It writes the output and the final states and keeps nothing for backward. A thread computes all gates of as many hidden
units of one head as a vector has lanes; where there are several threads, each has its share of the units, and they meet
after every step, when each needs the others' share of h.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.cell_kernel import CellKernel, StepAt
from fastrnn.backends.numba.kernels.dots import dots, stack_memory
from fastrnn.backends.numba.kernels.inner import inner
from fastrnn.backends.numba.kernels.simd import (
    address,
    lanes,
    load,
    load_int,
    load_some,
    store,
    store_some,
    take_ticket,
    zeros,
)
from fastrnn.backends.numba.kernels.states import other_states
from fastrnn.backends.numba.kernels.team import seconds, stay, team_members
from fastrnn.backends.numba.kernels.tile import share

ROWS = 8
"""Of the batch that meet one gate's weights in turn, while those are in the first-level cache."""


def unpacked_kernel(cell: CellKernel, dtype: Any) -> Any:
    """The kernel of one cell and dtype, over a block of `UnpackedShape` and `UnpackedAddresses`."""
    step, parameters, inputs, others = cell.step, cell.parameters, cell.inputs, other_states(cell.states)
    x_gates, u_gates = cell.x_gates, cell.u_gates
    x_memory, u_memory = stack_memory(ROWS * x_gates), stack_memory(ROWS * u_gates)
    states_memory, values_memory = stack_memory(cell.states), stack_memory(parameters + inputs)
    meets = u_gates > 0

    @inner
    def products(
        like: Any,
        some: int,
        gates: int,
        x: int,
        x_row: int,
        rows: int,
        k: int,
        w: int,
        units: int,
        bias: int,
        hidden: int,
        out: int,
    ) -> None:
        """out (rows, gates, lanes): w (gates·units, k) times x (rows, k), and the bias (gates·hidden,).

        Rows of w and numbers of the bias are those from the places given on.
        """
        for gate in range(gates):
            rows_of_gate = address(like, w, gate * units * k)
            for row in range(rows):
                at = (row * gates + gate) * lanes(like)
                dots(like, some, address(like, x, row * x_row), k, rows_of_gate, k, address(like, out, at))
                if bias != 0:
                    store(out, at, load(like, out, at) + load_some(like, bias, gate * hidden, some))

    @inner
    def run(a: Any, like: Any, member: int, members: int) -> None:
        gx, gh, states, of_units = x_memory(like), u_memory(like), states_memory(like), values_memory(like)
        width = lanes(like)
        h, c = states, address(like, states, width)
        of_step = address(like, of_units, parameters * width)
        of_head = (a.head + width - 1) // width
        all_blocks = a.hidden // a.head * of_head
        uneven = a.batch * width * (x_gates * a.inputs + u_gates * a.head)
        since, waited = seconds(a.clock) if member == 0 and members > 1 else 0.0, 0.0
        first, blocks = share(all_blocks, members, member)
        for s in range(a.steps):
            last = s == a.steps - 1
            t, before = (a.steps - 1 - s, 1) if a.reverse else (s, -1)
            h_all = a.h0 if s == 0 else address(like, a.ys, (t + before) * a.batch * a.hidden)
            c_all = a.c0 if s == 0 else a.c_last
            head = first // of_head
            unit = head * a.head + first % of_head * width
            for _ in range(blocks):
                some = min(width, (head + 1) * a.head - unit)
                if parameters > 0:
                    for k in range(parameters):
                        store(of_units, k * width, load_some(like, load_int(a.parameters, k), unit, some))
                for start in range(0, a.batch, ROWS):
                    rows = min(ROWS, a.batch - start)
                    x = address(like, a.x, (t * a.batch + start) * a.inputs)
                    w = address(like, a.w_ih, unit * a.inputs)
                    bias = address(like, a.bias_ih, unit) if a.bias_ih != 0 else 0
                    products(like, some, x_gates, x, a.inputs, rows, a.inputs, w, a.hidden, bias, a.hidden, gx)
                    h_rows = address(like, h_all, start * a.hidden + head * a.head)
                    w = address(like, a.w_hh, (head * (u_gates - 1) * a.head + unit) * a.head)
                    bias = address(like, a.bias_hh, unit) if a.bias_hh != 0 else 0
                    products(like, some, u_gates, h_rows, a.hidden, rows, a.head, w, a.head, bias, a.hidden, gh)
                    for row in range(rows):
                        at = (start + row) * a.hidden + unit
                        store(h, 0, load_some(like, h_all, at, some))
                        others.take_vector(like, c_all, at, c, width, some)
                        if inputs > 0:
                            for k in range(inputs):
                                value = ((t * a.batch + start + row) * inputs + k) * a.hidden + unit
                                store(of_step, k * width, load_some(like, a.step_inputs, value, some))
                        places = StepAt(
                            gx=address(like, gx, row * x_gates * width),
                            gh=address(like, gh, row * u_gates * width),
                            h=h,
                            others=c,
                            others_apart=width,
                            parameters=of_units,
                            inputs=of_step,
                            saved=0,
                            block=width,
                        )
                        new = step(like, places, some)
                        store_some(a.ys, t * a.batch * a.hidden + at, new, some)
                        others.put(like, c, width, a.c_last, at, some)
                        if last:
                            store_some(a.h_last, at, new, some)
                unit += some
                head += unit == (head + 1) * a.head
            if meets and members > 1 and not last:
                stays, waited = stay(a, a.counter, s, uneven, member == 0, since, waited)
                if not stays:
                    if member > 0:
                        return
                    members, first, blocks = 1, 0, all_blocks

    def unpacked(pointer: Any) -> None:
        like = zeros(dtype)
        a = carray(pointer, 1)[0]
        members = team_members(a, 1)
        member = take_ticket(a.counter)
        if member < members:
            run(a, like, member, members)

    return unpacked
