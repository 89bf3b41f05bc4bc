"""The kernel of a stream: a stack of layers in one call, for few rows and steps, with states that it keeps.

One thread does everything unless others help (`claims.py`). A call copies the states of the rows that it steps to
scratch memory, and back once all is done. Steps are taken in chunks: the input's product of a whole chunk reads its
weights once.

A *phase* is what panels of one layer need nothing of each other for, so that threads may share them.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.cell_kernel import CellKernel, StepAt
from fastrnn.backends.numba.kernels.claims import begin, done, finish, next_phase, take_first, take_last, wait, work_at
from fastrnn.backends.numba.kernels.extents import extent
from fastrnn.backends.numba.kernels.few_rows import (
    FLOAT32,
    INT8,
    product_of_rows,
)
from fastrnn.backends.numba.kernels.inner import forced, inner
from fastrnn.backends.numba.kernels.quantise import quantise
from fastrnn.backends.numba.kernels.rows import copy_row
from fastrnn.backends.numba.kernels.simd import (
    address,
    lanes,
    load,
    load_byte,
    load_int,
    register_bits,
    store,
    store_byte,
    store_int,
    store_some,
    zeros,
    zeros_in,
)

X_PRODUCT, STATE, PROJECTION = 1, 2, 4
"""What a phase does; of a chunk of one step the first two are one phase."""


def stream_registers() -> int:
    """In how many registers the vectors are that a cell's step takes: fewer lanes make longer chains."""
    return 1 if register_bits() == 512 else 2


@inner
def accepts(a: Any) -> bool:
    """Whether each slot of a call is one of the states, and none comes twice; from now on `taken` has them."""
    good = True
    if a.slots == 0:
        return good
    marked = 0
    while good and marked < a.rows:
        slot = load_int(a.slots, marked)
        store_int(a.taken, marked, slot)
        good = 0 <= slot < a.streams and load_byte(a.marks, slot) == 0
        if good:
            store_byte(a.marks, slot, 1)
            marked += 1
    for row in range(marked):
        store_byte(a.marks, load_int(a.taken, row), 0)
    return good


@forced
def state_of(a: Any, row: int) -> Any:
    """Which state a row of the call has."""
    return load_int(a.taken, row) if a.slots != 0 else row


def stream_kernel(
    cell: CellKernel, weights: str, units: int, registers: int, plain_units: int, projects: bool, dtype: Any
) -> Any:
    """The kernel of one cell and format of weights, over a block of `StreamCall` and `StreamLayer` for each layer.

    A panel of weights holds `units` vectors of hidden units for each gate, of so many registers: the cell's step is a
    long chain of operations, of which one register's do not keep the processor busy. One of a projection, if the cell
    has any, holds `plain_units` registers.
    """
    step, others = cell.step, cell.states - 1
    x_gates, u_gates, over_units, is_int8 = cell.x_gates, cell.u_gates, cell.over_units, weights == INT8
    x_vecs, u_vecs = registers * units * x_gates, registers * units * u_gates
    x_product, u_product = product_of_rows(weights, x_vecs), product_of_rows(weights, max(1, u_vecs))
    plain_product = product_of_rows(weights, plain_units)
    item = {FLOAT32: 4, INT8: 1}.get(weights, 2)

    @forced
    def panel_at(like: Any, w: int, panel: int, k: int, vecs: int) -> Any:
        """Where a panel of so many vectors begins, and how many numbers its pairs of vectors lie apart."""
        whole = (k + 1) // 2 * 2 if is_int8 else k
        apart = whole * 2 * lanes(like)
        return w + panel * ((vecs + 1) // 2) * apart * item, apart

    @inner
    def x_products(a: Any, like: Any, panel: int, rows: int, gx: int) -> None:
        """gx (rows, panels, x_vecs, lanes) of one panel."""
        width = x_vecs * lanes(like)
        w, apart = panel_at(like, a.w_ih, panel, a.inputs, x_vecs)
        bias, scales = address(like, a.bias_ih, panel * width), address(like, a.scales_ih, panel * width)
        numbers, row = (a.qx, a.qx_row) if is_int8 else (a.rows_at, a.rows_row)
        to, to_row = address(like, gx, panel * width), a.panels * width
        x_product(like, rows, bias, numbers, row, w, apart, a.inputs, to, to_row, a.qx_scales, scales)

    wide_zeros = zeros_in(registers)

    @forced
    def places_of(a: Any, like: Any, rows: int, row: int, unit: int, gx: int, h: int) -> Any:
        padded = a.panels * units * lanes(like)
        return StepAt(
            gx=address(like, gx, row * padded * x_gates + unit * x_gates),
            gh=address(like, a.gh, row * padded * u_gates + unit * u_gates),
            h=address(like, h, row * a.h_row + unit),
            others=address(like, a.others, row * a.others_row + unit),
            others_apart=rows * a.others_row,
            parameters=address(like, a.parameters, unit),
            inputs=address(like, a.step_inputs, unit),
            saved=0,
            block=a.hidden,
        )

    @forced
    def put(a: Any, like: Any, row: int, unit: int, h: Any, h_new: int, ys: int, ys_row: int) -> None:
        """A vector of a row's h after the step: what the layer gives, or what is projected."""
        if projects and a.projected:
            store(a.m, row * a.others_row + unit, h)
        else:
            store(h_new, row * a.h_row + unit, h)
            store_some(ys, row * ys_row + unit, h, a.hidden - unit)

    @inner
    def state_step(a: Any, like: Any, panel: int, rows: int, gx: int, h: int, h_new: int, ys: int, ys_row: int) -> None:
        """One panel's share of a step: the state's product, and the cell's step but of a cell over units."""
        width = u_vecs * lanes(like)
        if u_gates > 0:
            begins, k = extent(a.extents, panel)
            w, apart = panel_at(like, a.w_hh, panel, a.depth, u_vecs)
            bias, scales = address(like, a.bias_hh, panel * width), address(like, a.scales_hh, panel * width)
            numbers, row = (a.qh + 2 * begins, a.qh_row) if is_int8 else (address(like, h, begins), a.h_row)
            to, to_row = address(like, a.gh, panel * width), a.panels * width
            u_product(like, rows, bias, numbers, row, w, apart, k, to, to_row, a.qh_scales, scales)
        if not over_units:
            wide = wide_zeros(dtype)
            for row in range(rows):
                for u in range(units):
                    unit = (panel * units + u) * lanes(wide)
                    if unit < a.hidden:
                        new = step(wide, places_of(a, wide, rows, row, unit, gx, h), a.hidden - unit)
                        put(a, wide, row, unit, new, h_new, ys, ys_row)

    @forced
    def row_places(of_row: Any, like: Any, unit: int) -> Any:
        a, rows, row, gx, h, _, _, _ = of_row
        return places_of(a, like, rows, row, unit, gx, h)

    @forced
    def row_finish(of_row: Any, like: Any, unit: int, at: Any, h: Any) -> None:
        a, _, row, _, _, h_new, ys, ys_row = of_row
        put(a, like, row, unit, h, h_new, ys, ys_row)

    @inner
    def project(a: Any, like: Any, panel: int, rows: int, h_new: int, ys: int, ys_row: int) -> None:
        """A panel of h = w_hr m."""
        width = plain_units * lanes(like)
        w, apart = panel_at(like, a.w_hr, panel, a.hidden, plain_units)
        scales = address(like, a.scales_hr, panel * width)
        numbers, row = (a.qh, a.qh_row) if is_int8 else (a.m, a.others_row)
        to = address(like, h_new, panel * width)
        plain_product(like, rows, a.no_bias, numbers, row, w, apart, a.hidden, to, a.h_row, a.qh_scales, scales)
        for r in range(rows):
            for unit in range(panel * width, min(a.outputs, (panel + 1) * width), lanes(like)):
                store_some(ys, r * ys_row + unit, load(like, h_new, r * a.h_row + unit), a.outputs - unit)

    @inner
    def do_panel(
        a: Any, like: Any, stage: int, panel: int, xs: int, rows: int, gx: int, h: int, h_new: int, ys: int, ys_row: int
    ) -> None:
        if stage & X_PRODUCT:
            x_products(a, like, panel, xs, gx)
        if stage & STATE:
            state_step(a, like, panel, rows, gx, h, h_new, ys, ys_row)
        if projects and stage & PROJECTION:
            project(a, like, panel, rows, h_new, ys, ys_row)

    @inner
    def phase(
        blocks: Any,
        like: Any,
        layer: int,
        stage: int,
        panels: int,
        xs: int,
        rows: int,
        gx: int,
        h: int,
        h_new: int,
        ys: int,
        ys_row: int,
    ) -> None:
        """All panels of a phase, by whoever is there."""
        a, claims = blocks[layer], blocks[0].claims
        if claims == 0 or panels < 2:
            for panel in range(panels):
                do_panel(a, like, stage, panel, xs, rows, gx, h, h_new, ys, ys_row)
            return
        number = next_phase(claims)
        work = work_at(claims, number)
        for place, value in enumerate((layer, stage, panels, xs, rows, gx, h, h_new, ys, ys_row)):
            store_int(work, place, value)
        begin(claims, number, blocks[0].semaphore, blocks[0].post)
        own = 0
        panel = take_first(claims, number, panels)
        while panel >= 0:
            do_panel(a, like, stage, panel, xs, rows, gx, h, h_new, ys, ys_row)
            own += 1
            panel = take_first(claims, number, panels)
        if own < panels:
            finish(claims, panels - own)

    @inner
    def help_out(blocks: Any, like: Any) -> None:
        """What a helper does until it is told to stop."""
        claims, seen = blocks[0].claims, 0
        while True:
            seen = wait(claims, seen, blocks[0].semaphore, blocks[0].sleep)
            if seen < 0:
                return
            work = work_at(claims, seen)
            layer, stage, panels = load_int(work, 0), load_int(work, 1), load_int(work, 2)
            xs, rows, gx, h = load_int(work, 3), load_int(work, 4), load_int(work, 5), load_int(work, 6)
            h_new, ys, ys_row = load_int(work, 7), load_int(work, 8), load_int(work, 9)
            panel = take_last(claims, seen, panels)
            while panel >= 0:
                do_panel(blocks[layer], like, stage, panel, xs, rows, gx, h, h_new, ys, ys_row)
                done(claims)
                panel = take_last(claims, seen, panels)

    @inner
    def layer_steps(blocks: Any, like: Any, layer: int, steps: int, out: int, out_step: int, out_row: int) -> None:
        """A chunk's steps of one layer, whose rows are there; its outputs go to `out`."""
        a, rows = blocks[layer], blocks[0].rows
        xs, gx_step = steps * rows, rows * a.panels * x_vecs * lanes(like)
        plain_panels = (a.outputs + plain_units * lanes(like) - 1) // (plain_units * lanes(like))
        if is_int8:
            for row in range(xs):
                source, target = address(like, a.rows_at, row * a.rows_row), a.qx + 2 * row * a.qx_row
                quantise(like, source, a.inputs, target, a.qx_scales, row, a.qx_limit)
        if steps > 1:
            phase(blocks, like, layer, X_PRODUCT, a.panels, xs, rows, a.gx, 0, 0, 0, 0)
        for s in range(steps):
            h = address(like, a.h, a.current * rows * a.h_row)
            h_new = address(like, a.h, (1 - a.current) * rows * a.h_row)
            if is_int8 and u_gates > 0:
                for row in range(rows):
                    source, target = address(like, h, row * a.h_row), a.qh + 2 * row * a.qh_row
                    quantise(like, source, a.outputs, target, a.qh_scales, row, a.qh_limit)
            stage = STATE if steps > 1 else X_PRODUCT | STATE
            gx, ys = address(like, a.gx, s * gx_step), address(like, out, s * out_step)
            phase(blocks, like, layer, stage, a.panels, xs, rows, gx, h, h_new, ys, out_row)
            if over_units:
                for row in range(rows):
                    of_row = (a, rows, row, gx, h, h_new, ys, out_row)
                    step(wide_zeros(dtype), row_places, row_finish, of_row, a.hidden, a.kept)
            if projects and a.projected:
                if is_int8:
                    for row in range(rows):
                        source, target = address(like, a.m, row * a.others_row), a.qh + 2 * row * a.qh_row
                        quantise(like, source, a.hidden, target, a.qh_scales, row, a.qm_limit)
                phase(blocks, like, layer, PROJECTION, plain_panels, xs, rows, gx, h, h_new, ys, out_row)
            a.current = 1 - a.current

    @inner
    def take_states(blocks: Any, like: Any) -> None:
        """The states of the call's rows come to scratch memory."""
        for layer in range(blocks[0].layers):
            a, rows = blocks[layer], blocks[0].rows
            a.current = 0
            for row in range(rows):
                state = state_of(blocks[0], row)
                h = address(like, a.h_from, state * a.h_home_row)
                copy_row(like, h, address(like, a.h, row * a.h_row), a.outputs)
                for other in range(others):
                    there = address(like, a.others_from, other * a.others_home_apart + state * a.others_home_row)
                    copy_row(like, there, address(like, a.others, (other * rows + row) * a.others_row), a.hidden)

    @inner
    def give_states(blocks: Any, like: Any) -> None:
        """And go where they belong."""
        for layer in range(blocks[0].layers):
            a, rows = blocks[layer], blocks[0].rows
            for row in range(rows):
                state = state_of(blocks[0], row)
                h = address(like, a.h, (a.current * rows + row) * a.h_row)
                copy_row(like, h, address(like, a.h_to, state * a.h_home_row), a.outputs)
                for other in range(others):
                    there = address(like, a.others_to, other * a.others_home_apart + state * a.others_home_row)
                    copy_row(like, address(like, a.others, (other * rows + row) * a.others_row), there, a.hidden)

    @inner
    def run(blocks: Any, like: Any) -> None:
        call, last = blocks[0], blocks[0].layers - 1
        steps, rows, features, outputs = call.steps, call.rows, call.inputs, blocks[last].outputs
        x_step, x_row, y_step, y_row = rows * features, features, rows * outputs, outputs
        if call.swaps:
            x_step, x_row, y_step, y_row = features, steps * features, outputs, steps * outputs
        take_states(blocks, like)
        for start in range(0, steps, call.chunk):
            count = min(call.chunk, steps - start)
            for s in range(count):
                for row in range(rows):
                    source = address(like, call.x, (start + s) * x_step + row * x_row)
                    copy_row(like, source, address(like, call.rows_at, (s * rows + row) * call.rows_row), features)
            for layer in range(last):
                above = blocks[layer + 1]
                layer_steps(blocks, like, layer, count, above.rows_at, rows * above.rows_row, above.rows_row)
            layer_steps(blocks, like, last, count, address(like, call.ys, start * y_step), y_step, y_row)
        give_states(blocks, like)

    def stream(pointer: Any) -> None:
        like = zeros(dtype)
        blocks = carray(pointer, carray(pointer, 1)[0].layers)
        if blocks[0].helps:
            help_out(blocks, like)
        elif accepts(blocks[0]):
            run(blocks, like)
            blocks[0].status = 0
        else:
            blocks[0].status = 1

    return stream
