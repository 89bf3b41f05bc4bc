"""The forward kernel: a task owns some rows of the batch, in one direction, for all steps.

Tasks wait for nobody, unless there are fewer rows than threads and a step is long: then a team of threads shares the
rows' hidden units, and meets after every step, when each needs the others' share of h. Where the cell has no product of
the state, its members need nothing of each other, and never meet.

In chunks of steps: the input's product for the whole chunk into scratch memory that stays in cache, then step by step
the state's product, one tile after the other, each followed by the cell's step on what it gave. Of a cell that looks at
means over units all tiles of a step come first, and then its step row by row.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.cell_kernel import CellKernel, StepAt
from fastrnn.backends.numba.kernels.extents import extent
from fastrnn.backends.numba.kernels.inner import forced, inner
from fastrnn.backends.numba.kernels.masks import cut, live
from fastrnn.backends.numba.kernels.rows import clear_row, copy_row, multiply_row
from fastrnn.backends.numba.kernels.simd import (
    address,
    lanes,
    load,
    store,
    store_some,
    take_ticket,
    zeros,
)
from fastrnn.backends.numba.kernels.states import other_states
from fastrnn.backends.numba.kernels.team import seconds, stay, team_members
from fastrnn.backends.numba.kernels.tile import next_panel, part_of_panel, product, share, tile_rows


def forward_kernel(cell: CellKernel, units: int, plain_units: int, projects: bool, dtype: Any) -> Any:
    """The kernel of one cell and dtype, over one or two blocks of `ForwardShape` and `ForwardAddresses`.

    A panel of weights holds `units` vectors of hidden units for each gate, one of a projection, if the cell has any,
    `plain_units`.
    """
    step, others, inputs, saves = cell.step, other_states(cell.states), cell.inputs, cell.saved
    take, give, clear, clear_out, put = others.take, others.give, others.clear, others.clear_out, others.put
    x_gates, u_gates, meets = cell.x_gates, cell.u_gates, cell.u_gates > 0
    x_vecs, u_vecs = units * x_gates, units * u_gates
    x_tile, x_most, u_tile, u_most = product(x_vecs), tile_rows(x_vecs), product(u_vecs), tile_rows(u_vecs)
    most = u_most if u_gates > 0 else 1  # rows at a time
    over_units, by_unit = cell.over_units, not cell.over_units
    plain_tile, plain_most = product(plain_units), tile_rows(plain_units)

    @inner
    def input_products(
        a: Any, like: Any, t: int, steps: int, first: int, rows: int, first_panel: int, panels: int, gx: int
    ) -> None:
        """gx (steps, rows, all panels, x_vecs, lanes) from x and its bias, for steps from t on in the order they run.

        Tiles run along time, except where there are more rows than a tile holds but too few steps.
        """
        width = x_vecs * lanes(like)
        row_gx = a.panels * width
        step_gx = rows * row_gx
        step_x = -a.x_step if a.reverse else a.x_step
        x = address(like, a.x, t * a.x_step + first * a.x_row)
        along_time = steps >= min(rows, x_most)
        inner, inner_x, inner_gx = (steps, step_x, step_gx) if along_time else (rows, a.x_row, row_gx)
        outer, outer_x, outer_gx = (rows, a.x_row, row_gx) if along_time else (steps, step_x, step_gx)
        blocks = (inner + x_most - 1) // x_most
        weights = address(like, a.memory + a.w_ih_at, first_panel * a.inputs * width)
        for panel in range(first_panel, first_panel + panels):
            bias = address(like, a.memory + a.bias_ih_at, panel * width)
            w = address(like, a.memory + a.w_ih_at, panel * a.inputs * width)
            following = next_panel(like, weights, panel - first_panel, panels, a.inputs, width)
            for o in range(outer):
                for block in range(blocks):
                    begin, count = share(inner, blocks, block)
                    number = o * blocks + block
                    soon, soon_step = part_of_panel(like, following, a.inputs, width, outer * blocks, number)
                    at = address(like, x, o * outer_x + begin * inner_x)
                    to = address(like, gx, o * outer_gx + begin * inner_gx + panel * width)
                    x_tile(like, count, bias, at, inner_x, w, a.inputs, to, inner_gx, soon, soon_step)

    @forced
    def kept(own: int) -> Any:
        """From which unit on a member of a team touches h: all of them touch all, but where they never meet."""
        return 0 if meets else own

    @forced
    def kept_units(a: Any, own_units: int) -> Any:
        """How many units of h that are."""
        return a.outputs if meets else own_units

    @inner
    def put_output(a: Any, like: Any, h: Any, h_new: int, t: int, row: int, unit: int) -> None:
        """h, a vector of what the layer gives at step t, into the state and the output."""
        store(h_new, 0, h)
        store_some(a.ys, (t * a.batch + row) * a.ys_row + unit, h, a.outputs - unit)

    @forced
    def places_of(a: Any, like: Any, number: int, unit: int, gx: int, gh: int, h: int, c_at: int, c_apart: int) -> Any:
        """Of a vector of units in step and row `number`, whose shares and states are at these addresses."""
        saved = 0
        if saves > 0 and a.saved != 0:
            saved = address(like, a.saved, number * saves * a.hidden + unit)
        return StepAt(
            gx=gx,
            gh=gh,
            h=h,
            others=c_at,
            others_apart=c_apart,
            parameters=address(like, a.parameters, unit),
            inputs=address(like, a.step_inputs, number * inputs * a.hidden + unit),
            saved=saved,
            block=a.hidden,
        )

    @forced
    def row_places(of_row: Any, like: Any, unit: int) -> Any:
        a, t, b, gx, gh, h, _, c, c_apart = of_row
        gx, gh = address(like, gx, unit * x_gates), address(like, gh, unit * u_gates)
        h, c = address(like, h, unit), address(like, c, unit)
        return places_of(a, like, t * a.batch + b, unit, gx, gh, h, c, c_apart)

    @forced
    def row_finish(of_row: Any, like: Any, unit: int, at: Any, h: Any) -> None:
        a, t, b, _, _, _, h_new, _, c_apart = of_row
        if a.history != 0:
            number = t * a.batch + b
            put(like, at.others, c_apart, a.history, number * a.history_row + unit, a.hidden - unit)
        put_output(a, like, h, address(like, h_new, unit), t, b, unit)

    @inner
    def row_steps(
        a: Any, like: Any, t: int, first: int, rows: int, gx: int, h: int, h_new: int, h_row: int, base: int
    ) -> None:
        """The cell's step for whole rows, those that are alive, once all products of step t are there."""
        c_row = a.panels * units * lanes(like)
        for row in range(rows):
            b = first + row
            if live(a, t, b):
                at_h = row * h_row
                of_row = (
                    a,
                    t,
                    b,
                    address(like, gx, row * c_row * x_gates),
                    address(like, base + a.tile_at, row * c_row * u_gates),
                    address(like, h, at_h),
                    address(like, h_new, at_h),
                    address(like, base + a.c_at, row * c_row),
                    rows * c_row,
                )
                step(like, row_places, row_finish, of_row, a.hidden, base + a.kept_at)

    @inner
    def state_step(
        a: Any,
        like: Any,
        t: int,
        first: int,
        rows: int,
        member: int,
        members: int,
        gx: int,
        h: int,
        multiplied: int,
        h_new: int,
        h_row: int,
        base: int,
    ) -> None:
        """Step t of the rows that are alive: from h to h_new (rows, h_row), c in place, a member's share of panels.

        The product reads `multiplied` (rows, h_row), which is h but for recurrent dropout.
        """
        lane_count = lanes(like)
        width = u_vecs * lane_count
        c_row = a.panels * units * lane_count
        c_apart = rows * c_row
        c, m, out, out_row = base + a.c_at, base + a.m_at, base + a.tile_at + member * a.tile_size, width
        if over_units:
            out_row = a.panels * width
        blocks = (rows + most - 1) // most
        first_panel, panels = share(a.panels, members, member)
        weights = address(like, a.memory + a.w_hh_at, first_panel * a.depth * width)
        # Weights stay in the cache from one block of rows to the next; without any, memory is read as it lies.
        outer, inner = (panels, blocks) if u_gates > 0 else (blocks, panels)
        for o in range(outer):
            for i in range(inner):
                panel, block = (first_panel + o, i) if u_gates > 0 else (first_panel + i, o)
                bias = address(like, a.memory + a.bias_hh_at, panel * width)
                begin, count = share(rows, blocks, block)
                if u_gates > 0:
                    first_k, k = extent(a.extents, panel)
                    w = address(like, a.memory + a.w_hh_at, panel * a.depth * width)
                    following = next_panel(like, weights, panel - first_panel, panels, a.depth, width)
                    soon, soon_step = part_of_panel(like, following, k, width, blocks, block)
                    h_block = address(like, multiplied, begin * h_row + first_k)
                    to = out
                    if over_units:
                        to = address(like, out, begin * out_row + panel * width)
                    u_tile(like, count, bias, h_block, h_row, w, k, to, out_row, soon, soon_step)
                if by_unit:
                    for r in range(count):
                        row = begin + r
                        b = first + row
                        if not live(a, t, b):
                            continue
                        for u in range(units):
                            unit = (panel * units + u) * lane_count
                            some = a.hidden - unit
                            if some <= 0:
                                continue
                            c_at, number = address(like, c, row * c_row + unit), t * a.batch + b
                            gx_at = address(like, gx, ((row * a.panels + panel) * units + u) * x_gates * lane_count)
                            gh_at = address(like, out, (r * units + u) * u_gates * lane_count)
                            h_at = address(like, h, row * h_row + unit)
                            places = places_of(a, like, number, unit, gx_at, gh_at, h_at, c_at, c_apart)
                            new = step(like, places, some)
                            if a.history != 0:
                                put(like, c_at, c_apart, a.history, number * a.history_row + unit, some)
                            if projects and a.projected:
                                store(m, row * c_row + unit, new)
                            else:
                                put_output(a, like, new, address(like, h_new, row * h_row + unit), t, b, unit)
        if over_units:
            row_steps(a, like, t, first, rows, gx, h, h_new, h_row, base)

    @inner
    def project(a: Any, like: Any, t: int, first: int, rows: int, h_new: int, h_row: int, base: int) -> None:
        """h_new = w_hr m for the rows that are alive at step t."""
        lane_count = lanes(like)
        width = plain_units * lane_count
        m_row = a.panels * units * lane_count
        out = base + a.tile_at
        blocks = (rows + plain_most - 1) // plain_most
        panels = (a.outputs + width - 1) // width
        for panel in range(panels):
            w = address(like, a.memory + a.w_hr_at, panel * a.hidden * width)
            following = next_panel(like, a.memory + a.w_hr_at, panel, panels, a.hidden, width)
            for block in range(blocks):
                begin, count = share(rows, blocks, block)
                soon, soon_step = part_of_panel(like, following, a.hidden, width, blocks, block)
                m = address(like, base + a.m_at, begin * m_row)
                plain_tile(like, count, base, m, m_row, w, a.hidden, out, width, soon, soon_step)
                for r in range(count):
                    if not live(a, t, first + begin + r):
                        continue
                    for u in range(plain_units):
                        unit = panel * width + u * lane_count
                        if unit < a.outputs:
                            new = load(like, out, r * width + u * lane_count)
                            at = address(like, h_new, (begin + r) * h_row + unit)
                            put_output(a, like, new, at, t, first + begin + r, unit)

    @inner
    def rest(a: Any, like: Any, t: int, b: int, h: int, h_new: int, own_units: int) -> None:
        """Step t of a row that is over or has not begun: the state stays, outputs are zero."""
        copy_row(like, h, h_new, kept_units(a, own_units))
        at = t * a.batch + b
        clear_row(like, address(like, a.ys, at * a.ys_row), a.outputs)
        if a.history != 0:
            clear_out(like, a.history, at * a.history_row, a.hidden)
        if saves > 0 and a.saved != 0:
            clear_row(like, address(like, a.saved, at * saves * a.hidden), saves * a.hidden)

    @inner
    def run(
        a: Any, like: Any, row_slice: int, member: int, members: int, base: int, counter: int, decides: bool
    ) -> None:
        """A slice's steps, by one thread, or by one of the members of a team, of which the first may end up alone.

        What members write of h twice, they write alike and before they meet; of c each touches its own units only, and
        of h where they never meet.
        """
        first, rows = share(a.batch, a.slices, row_slice)
        lane_count = lanes(like)
        c_row = a.panels * units * lane_count
        c_apart = rows * c_row
        plain_width = plain_units * lane_count
        h_row = (a.outputs + plain_width - 1) // plain_width * plain_width
        h, h_new = base + a.h_at, address(like, base + a.h_at, rows * h_row)
        c, gx = base + a.c_at, base + a.gx_at
        first_panel, panels = share(a.panels, members, member)
        own = first_panel * units * lane_count
        own_units = min(panels * units * lane_count, a.hidden - own)
        clear_row(like, base, plain_width)
        uneven = rows * lane_count * (u_vecs * a.depth + x_vecs * a.inputs * a.chunk)
        since, waited = seconds(a.clock) if meets and decides and members > 1 else 0.0, 0.0
        first_t = a.steps - 1 if a.reverse else 0
        for row in range(rows):
            b = first + row
            # A late member must not bring back what another has cleared for the first step.
            if cut(a, first_t, b):
                clear_row(like, address(like, h, row * h_row + kept(own)), kept_units(a, own_units))
            else:
                h0, to = address(like, a.h0, b * a.outputs + kept(own)), address(like, h, row * h_row + kept(own))
                copy_row(like, h0, to, kept_units(a, own_units))
            take(like, a.c0, b * a.hidden + own, address(like, c, row * c_row + own), c_apart, own_units)
        for start in range(0, a.steps, a.chunk):
            steps = min(a.chunk, a.steps - start)
            t = a.steps - 1 - start if a.reverse else start
            if a.parts == 0:
                input_products(a, like, t, steps, first, rows, first_panel, panels, gx)
            for s in range(steps):
                for row in range(rows):
                    if cut(a, t, first + row):
                        clear_row(like, address(like, h, row * h_row + kept(own)), kept_units(a, own_units))
                        clear(like, address(like, c, row * c_row + own), c_apart, own_units)
                gx_step = address(like, gx, s * rows * a.panels * x_vecs * lane_count)
                multiplied = h
                if meets and a.recurrent_mask != 0:
                    multiplied = base + a.multiplied_at
                    for row in range(rows):
                        mask = address(like, a.recurrent_mask, (first + row) * a.outputs)
                        h_at, to = address(like, h, row * h_row), address(like, multiplied, row * h_row)
                        multiply_row(like, h_at, mask, to, a.outputs)
                state_step(a, like, t, first, rows, member, members, gx_step, h, multiplied, h_new, h_row, base)
                if projects and a.projected:
                    project(a, like, t, first, rows, h_new, h_row, base)
                if a.lengths != 0:
                    for row in range(rows):
                        if not live(a, t, first + row):
                            at = row * h_row + kept(own)
                            rest(a, like, t, first + row, address(like, h, at), address(like, h_new, at), own_units)
                if meets and members > 1:
                    stays, waited = stay(a, counter, start + s, uneven, decides, since, waited)
                    if not stays:
                        if member > 0:
                            return
                        members, first_panel, panels = 1, 0, a.panels
                        own, own_units = 0, a.hidden
                h, h_new = h_new, h
                t += -1 if a.reverse else 1
        for row in range(rows):
            b = first + row
            to = address(like, a.h_last, b * a.outputs + kept(own))
            copy_row(like, address(like, h, row * h_row + kept(own)), to, kept_units(a, own_units))
            give(like, address(like, c, row * c_row + own), c_apart, a.c_last, b * a.hidden + own, own_units)

    @inner
    def run_part(a: Any, like: Any, row_slice: int, part: int, base: int) -> None:
        """One part of the input's product for all steps."""
        first, rows = share(a.batch, a.slices, row_slice)
        start, steps = share(a.steps, a.parts, part)
        t = a.steps - 1 - start if a.reverse else start
        gx = address(like, base + a.gx_at, start * rows * a.panels * x_vecs * lanes(like))
        input_products(a, like, t, steps, first, rows, 0, a.panels, gx)

    def forward(pointer: Any) -> None:
        like = zeros(dtype)
        blocks = carray(pointer, 2)
        a = blocks[0]
        parts = a.parts
        if parts <= 0:
            parts = team_members(a, a.owners) if meets else a.team
        while True:
            task = take_ticket(a.counter)
            if task >= a.owners * parts:
                break
            owner, part = task // parts, task % parts
            direction, row_slice = owner // a.slices, owner % a.slices
            base = a.memory + a.scratch_at + owner * a.scratch_size
            if a.parts > 0:
                run_part(blocks[direction], like, row_slice, part, base)
            else:
                run(blocks[direction], like, row_slice, part, parts, base, a.counter, task == 0)

    return forward
