"""The backward kernel: as the forward's, a task owns some rows of the batch in one direction for all steps.

What reaches h from the step after it is dgates w_hh, a tile at a time, each followed by the cell's derivative on what
it gave; of a cell that looks at means over units, row by row after all tiles. The gradients of weights and x are large
products of dgates, outside, but where the cell has no product of the state: there x's gradient is computed for a chunk
of steps at a time, while dgates are in the cache.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.cell_kernel import CellKernel, DerivativeAt
from fastrnn.backends.numba.kernels.dots import dots, stack_memory
from fastrnn.backends.numba.kernels.extents import extent
from fastrnn.backends.numba.kernels.inner import forced, inner
from fastrnn.backends.numba.kernels.masks import cut, live, starts
from fastrnn.backends.numba.kernels.rows import clear_row, copy_row, fetch_row, multiply_row
from fastrnn.backends.numba.kernels.simd import (
    address,
    lanes,
    load,
    load_some,
    store,
    store_some,
    take_ticket,
    zeros,
)
from fastrnn.backends.numba.kernels.states import other_states
from fastrnn.backends.numba.kernels.team import seconds, stay, team_members
from fastrnn.backends.numba.kernels.tile import next_panel, part_of_panel, product, share, tile_rows


def backward_kernel(cell: CellKernel, units: int, projects: bool, dtype: Any) -> Any:
    """The kernel of one cell and dtype, over one or two blocks of `BackwardShape` and `BackwardAddresses`.

    Panels hold `units` vectors. `projects`: whether the cell may have a projection.
    """
    derivative, others, inputs, saves = cell.derivative, other_states(cell.states), cell.inputs, cell.saved
    parameters = cell.parameters
    fetch, give, clear, add, vectors = others.fetch, others.give, others.clear, others.add, others.vectors
    memory_before, memory_after = stack_memory(cell.states), stack_memory(cell.states)
    like_blocks, x_gates = saves in (0, cell.blocks), cell.x_gates
    over_units, by_unit = cell.over_units, not cell.over_units
    has_product, is_alone = cell.u_gates > 0, cell.u_gates == 0  # a branch on either by itself is not compiled in vain
    tile, tile_most = product(units), tile_rows(units)

    @forced
    def row_of_units(a: Any, like: Any) -> Any:
        """Elements between rows of H in scratch memory."""
        width = units * lanes(like)
        return (a.hidden + width - 1) // width * width

    @forced
    def d_parameters_at(a: Any, like: Any, row: int, parameter: int, unit: int, base: int) -> Any:
        """Where a sequence's share of a parameter's gradient is, from a unit on."""
        return address(like, base + a.d_parameters_at, (row * parameters + parameter) * row_of_units(a, like) + unit)

    @forced
    def dc_at(a: Any, like: Any, row: int, unit: int, base: int) -> Any:
        """Where the gradients of the other states are, from a unit of a row on."""
        return address(like, base + a.dc_at, row * row_of_units(a, like) + unit)

    @forced
    def places_of(
        a: Any, like: Any, t: int, b: int, row: int, unit: int, base: int, memory: int, memory_of_after: int
    ) -> Any:
        """Of a vector of units at a live step; the memories are for vectors of the states before and after it."""
        some, dc = a.hidden - unit, dc_at(a, like, row, unit, base)
        number, before_t = t * a.batch + b, t + 1 if a.reverse else t - 1
        if cut(a, t, b):
            h_before, c_before, before_apart = base, base, 0
        elif starts(a, t, b):
            before, before_apart = b * a.hidden + unit, lanes(like)
            h_before, c_before = address(like, a.h0, before), vectors(like, a.c0, before, memory, some)
        else:
            before, before_apart = (before_t * a.batch + b) * a.states_row + unit, lanes(like)
            h_before, c_before = address(like, a.h, before), vectors(like, a.c, before, memory, some)
        after = number * a.states_row + unit
        at = number * a.gates_row + unit
        # Saved values lie as the blocks do where there are as many of them; where there are none, nobody looks.
        saved = at if like_blocks else number * saves * a.hidden + unit
        return DerivativeAt(
            saved=address(like, a.saved, saved),
            h_before=h_before,
            h_after=address(like, a.h, after),
            others_before=c_before,
            before_apart=before_apart,
            others_after=vectors(like, a.c, after, memory_of_after, some),
            after_apart=lanes(like),
            d_others=dc,
            d_apart=a.dc_apart,
            parameters=address(like, a.parameters, unit),
            inputs=address(like, a.step_inputs, number * inputs * a.hidden + unit),
            blocks=address(like, a.dgates, at),
            block=a.hidden,
            d_parameters=d_parameters_at(a, like, row, 0, unit, base),
            d_parameters_apart=row_of_units(a, like),
        )

    @inner
    def differentiate(a: Any, like: Any, dh: Any, t: int, b: int, row: int, unit: int, base: int) -> Any:
        """The cell's derivative for one vector of units at a live step -> the gradient of the h before it, directly."""
        if a.dhistory != 0:
            at, dc = t * a.dhistory_step + b * a.dhistory_row + unit, dc_at(a, like, row, unit, base)
            add(like, a.dhistory, at, dc, a.dc_apart, a.hidden - unit)
        places = places_of(a, like, t, b, row, unit, base, memory_before(like), memory_after(like))
        return derivative(like, dh, places, a.hidden - unit)

    @forced
    def row_places(of_row: Any, like: Any, unit: int) -> Any:
        a, t, b, row, base, carry, before, after = of_row
        return load(like, carry, unit), places_of(a, like, t, b, row, unit, base, before, after)

    @forced
    def row_finish(of_row: Any, like: Any, unit: int, at: Any, dh: Any) -> None:
        carry = of_row[5]
        store(carry, unit, dh)

    @inner
    def row_derivatives(a: Any, like: Any, t: int, first: int, rows: int, base: int) -> None:
        """The cell's derivative for whole rows, those that are alive at step t, once all that reaches h has come."""
        width = units * lanes(like)
        carry_row = (a.outputs + width - 1) // width * width
        before, after = memory_before(like), memory_after(like)
        for row in range(rows):
            b = first + row
            if live(a, t, b):
                if a.dhistory != 0:
                    for unit in range(0, a.hidden, lanes(like)):
                        at, dc = t * a.dhistory_step + b * a.dhistory_row + unit, dc_at(a, like, row, unit, base)
                        add(like, a.dhistory, at, dc, a.dc_apart, a.hidden - unit)
                carry = address(like, base + a.carry_at, row * carry_row)
                of_row = a, t, b, row, base, carry, before, after
                derivative(like, row_places, row_finish, of_row, a.hidden, base + a.kept_at)

    @inner
    def add_up(like: Any, out: int, size: int, segments: int) -> None:
        """Adds to the results of a product's first segment those of the others, `size` numbers each: from the last one
        on, each to those before it."""
        for at in range(size * segments - lanes(like), size - 1, -lanes(like)):
            store(out, at - size, load(like, out, at - size) + load(like, out, at))

    @inner
    def arrive(
        a: Any, like: Any, t: int, later: int, first: int, rows: int, member: int, members: int, base: int
    ) -> None:
        """What reaches h after step t through step `later`, and on through the cell unless a projection is between.

        A member of a team has its share of the panels. `later` is the step that was done before this one, -1 at the
        first; t is -1 after the last, when what has arrived is the initial state's gradient.
        """
        lane_count = lanes(like)
        width = units * lane_count
        carry_row = (a.outputs + width - 1) // width * width
        out = base + a.tile_at + member * a.tile_size
        first_panel, panels = share(carry_row // width, members, member)
        weights = address(like, a.memory + a.w_hh_at, first_panel * a.depth * width)
        blocks = (rows + tile_most - 1) // tile_most if has_product else rows
        # Weights stay in the cache from one block of rows to the next; without any, memory is read as it lies.
        outer, inner = (panels, blocks) if has_product else (blocks, panels)
        for o in range(outer):
            for i in range(inner):
                panel, block = (first_panel + o, i) if has_product else (first_panel + i, o)
                begin, count = share(rows, blocks, block)
                if has_product:
                    first_k, of_segment = extent(a.extents, panel)
                    w = address(like, a.memory + a.w_hh_at, panel * a.depth * width)
                    following = next_panel(like, weights, panel - first_panel, panels, a.depth, width)
                    at = (later * a.batch + first + begin) * a.gates_row + a.products_at + first_k
                    k = of_segment if later >= 0 else 0
                    for segment in range(a.segments):
                        tiles, number = blocks * a.segments, block * a.segments + segment
                        soon, soon_step = part_of_panel(like, following, of_segment, width, tiles, number)
                        dgh = address(like, a.dgates, at + segment * a.hidden)
                        of_gate = address(like, w, segment * of_segment * width)
                        to = address(like, out, segment * count * width)
                        tile(like, count, base, dgh, a.gates_row, of_gate, k, to, width, soon, soon_step)
                    if a.segments > 1:
                        add_up(like, out, count * width, a.segments)
                    if a.recurrent_mask != 0:
                        for r in range(count):
                            column, to = panel * width, address(like, out, r * width)
                            mask = address(like, a.recurrent_mask, (first + begin + r) * a.outputs + column)
                            multiply_row(like, to, mask, to, min(width, a.outputs - column))
                for r in range(count):
                    row = begin + r
                    b = first + row
                    linked = later >= 0 and live(a, later, b) and not cut(a, later, b)
                    alive = t >= 0 and live(a, t, b)
                    for u in range(units):
                        unit = panel * width + u * lane_count
                        some = a.outputs - unit
                        if some <= 0:
                            continue
                        carry = address(like, base + a.carry_at, row * carry_row + unit)
                        dh = load(like, carry, 0)
                        if has_product and linked:
                            dh = dh + load(like, out, r * width + u * lane_count)
                        if alive and a.dys != 0:
                            dh = dh + load_some(like, a.dys, t * a.dys_step + b * a.dys_row + unit, some)
                        if alive and projects and a.projected:
                            store_some(a.dh_out, (t * a.batch + b) * a.outputs + unit, dh, some)
                            store(base + a.dh_at, row * carry_row + unit, dh)
                            dh = like
                        elif by_unit and alive:
                            dh = differentiate(a, like, dh, t, b, row, unit, base)
                        store(carry, 0, dh)
        if over_units and t >= 0:
            row_derivatives(a, like, t, first, rows, base)

    @inner
    def input_gradient(a: Any, like: Any, t: int, steps: int, first: int, rows: int, base: int, out: int) -> None:
        """dx = dgx w_ih for steps from t on. Tiles run as the forward's."""
        k, step_d = x_gates * a.hidden, a.batch * a.gates_row
        d = address(like, a.dgates, (t * a.batch + first) * a.gates_row)
        dx = address(like, a.dx, (t * a.batch + first) * a.inputs)
        width, most = units * lanes(like), lanes(like) if a.inputs == 1 else tile_most
        along_time = steps >= min(rows, most)
        inner, inner_d, inner_x = (steps, step_d, a.batch * a.inputs) if along_time else (rows, a.gates_row, a.inputs)
        outer, outer_d, outer_x = (rows, a.gates_row, a.inputs) if along_time else (steps, step_d, a.batch * a.inputs)
        blocks, panels = (inner + most - 1) // most, (a.inputs + width - 1) // width
        weights = address(like, a.memory + a.w_ih_at, 0)
        for panel in range(panels):
            w, column = address(like, weights, panel * k * width), panel * width
            following = next_panel(like, weights, panel, panels, k, width)
            for o in range(outer):
                for block in range(blocks):
                    begin, count = share(inner, blocks, block)
                    at = address(like, d, o * outer_d + begin * inner_d)
                    to = address(like, dx, o * outer_x + begin * inner_x + column)
                    if a.inputs == 1:
                        dots(like, count, w, k, at, inner_d, out)
                        for r in range(count):
                            store_some(to, r * inner_x, load(like, out, r), 1)
                        continue
                    soon, soon_step = part_of_panel(like, following, k, width, outer * blocks, o * blocks + block)
                    if column + width <= a.inputs:
                        tile(like, count, base, at, inner_d, w, k, to, inner_x, soon, soon_step)
                        continue
                    tile(like, count, base, at, inner_d, w, k, out, width, soon, soon_step)
                    for r in range(count):
                        copy_row(like, address(like, out, r * width), address(like, to, r * inner_x), a.inputs - column)

    @inner
    def unproject(a: Any, like: Any, t: int, first: int, rows: int, base: int) -> None:
        """The gradient of o tanh(c), dh w_hr, and on through the cell, for the rows that are alive at step t."""
        lane_count = lanes(like)
        width = units * lane_count
        dh_row = (a.outputs + width - 1) // width * width
        out = base + a.tile_at
        blocks = (rows + tile_most - 1) // tile_most
        panels = (a.hidden + width - 1) // width
        for panel in range(panels):
            w = address(like, a.memory + a.w_hr_at, panel * a.outputs * width)
            following = next_panel(like, a.memory + a.w_hr_at, panel, panels, a.outputs, width)
            for block in range(blocks):
                begin, count = share(rows, blocks, block)
                soon, soon_step = part_of_panel(like, following, a.outputs, width, blocks, block)
                dh = address(like, base + a.dh_at, begin * dh_row)
                tile(like, count, base, dh, dh_row, w, a.outputs, out, width, soon, soon_step)
                for r in range(count):
                    row = begin + r
                    if not live(a, t, first + row):
                        continue
                    for u in range(units):
                        unit = panel * width + u * lane_count
                        if by_unit and unit < a.hidden:
                            dm = load(like, out, r * width + u * lane_count)
                            differentiate(a, like, dm, t, first + row, row, unit, base)

    @inner
    def run(
        a: Any, like: Any, row_slice: int, member: int, members: int, base: int, counter: int, decides: bool
    ) -> None:
        """A slice's steps, by one thread, or by one of the members of a team, of which the first may end up alone.

        What members write twice, they write alike and before they meet; of carries each touches its own units only.
        """
        first, rows = share(a.batch, a.slices, row_slice)
        width = units * lanes(like)
        carry_row = (a.outputs + width - 1) // width * width
        dc_row = (a.hidden + width - 1) // width * width
        first_panel, panels = share(carry_row // width, members, member)
        own = first_panel * width
        own_outputs = min(panels * width, a.outputs - own)
        # With a projection there is one member, and h and c differ in size.
        own_hidden = own_outputs if members > 1 else a.hidden
        clear_row(like, base, width)
        since, waited = seconds(a.clock) if has_product and decides and members > 1 else 0.0, 0.0
        for row in range(rows):
            b = first + row
            source = address(like, a.dh_last, b * a.outputs + own) if a.dh_last != 0 else 0
            fetch_row(like, source, address(like, base + a.carry_at, row * carry_row + own), own_outputs)
            dc = address(like, base + a.dc_at, row * dc_row + own)
            fetch(like, a.dc_last, b * a.hidden + own, dc, a.dc_apart, own_hidden)
            for parameter in range(parameters):
                clear_row(like, d_parameters_at(a, like, row, parameter, own, base), own_hidden)
        later = -1
        for s in range(a.steps):
            t = s if a.reverse else a.steps - 1 - s
            arrive(a, like, t, later, first, rows, member, members, base)
            if projects and a.projected:
                unproject(a, like, t, first, rows, base)
            for row in range(rows):
                b = first + row
                if not live(a, t, b):
                    clear_row(like, address(like, a.dgates, (t * a.batch + b) * a.gates_row), a.gates_row)
                    if projects and a.projected:
                        clear_row(like, address(like, a.dh_out, (t * a.batch + b) * a.outputs), a.outputs)
                if cut(a, t, b):
                    clear_row(like, address(like, base + a.carry_at, row * carry_row + own), own_outputs)
                    clear(like, address(like, base + a.dc_at, row * dc_row + own), a.dc_apart, own_hidden)
            if is_alone and a.dx != 0 and a.parts == 0 and ((s + 1) % a.chunk == 0 or s + 1 == a.steps):
                steps = s % a.chunk + 1
                start = t - steps + 1 if a.reverse else t
                input_gradient(a, like, start, steps, first, rows, base, base + a.tile_at)
            if has_product and members > 1:
                stays, waited = stay(a, counter, s, rows * width * a.depth, decides, since, waited)
                if not stays:
                    if member > 0:
                        return
                    members, own, own_outputs, own_hidden = 1, 0, a.outputs, a.hidden
            later = t
        arrive(a, like, -1, later, first, rows, member, members, base)
        for row in range(rows):
            b = first + row
            carry = address(like, base + a.carry_at, row * carry_row + own)
            copy_row(like, carry, address(like, a.dh0, b * a.outputs + own), own_outputs)
            dc = address(like, base + a.dc_at, row * dc_row + own)
            give(like, dc, a.dc_apart, a.dc0, b * a.hidden + own, own_hidden)
            for parameter in range(parameters):
                to = address(like, a.d_parameters, (b * parameters + parameter) * a.hidden + own)
                copy_row(like, d_parameters_at(a, like, row, parameter, own, base), to, own_hidden)

    @inner
    def run_part(a: Any, like: Any, row_slice: int, part: int, base: int) -> None:
        """One part of the input's gradient for all steps."""
        first, rows = share(a.batch, a.slices, row_slice)
        start, steps = share(a.steps, a.parts, part)
        clear_row(like, base, units * lanes(like))
        input_gradient(a, like, start, steps, first, rows, base, base + a.tile_at + part * a.tile_size)

    def backward(pointer: Any) -> None:
        like = zeros(dtype)
        blocks = carray(pointer, 2)
        a = blocks[0]
        members = team_members(a, a.owners) if has_product else a.team
        while True:
            task = take_ticket(a.counter)
            if task >= a.owners * members:
                break
            owner, member = task // members, task % members
            base = a.memory + a.scratch_at + owner * a.scratch_size
            direction, row_slice = owner // a.slices, owner % a.slices
            if is_alone and a.parts > 0:
                run_part(blocks[direction], like, row_slice, member, base)
            else:
                run(blocks[direction], like, row_slice, member, members, base, a.counter, task == 0)

    return backward
