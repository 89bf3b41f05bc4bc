"""How a forward is cut into tasks, and where in memory everything lies: what depends on sizes only."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from fastrnn.backends.numba import launch
from fastrnn.backends.numba.arguments import ForwardShape
from fastrnn.backends.numba.cell_code import cell_code
from fastrnn.backends.numba.compile import kernel
from fastrnn.backends.numba.extents import extents
from fastrnn.backends.numba.geometry import PANEL_VECTORS, Arena, divide_up, panel_units
from fastrnn.backends.numba.panels import Panels
from fastrnn.backends.numba.sharing import SECONDS_PER_PRODUCT, Pace
from fastrnn.backends.numba.split import WORK_PER_THREAD, split, split_units
from fastrnn.cells.known import KNOWN

GX_BYTES = 384 * 1024
"""Of a task's input products: with the weights of 256 units of an LSTM they fit a second-level cache of 2 MB."""
SPREAD_BYTES = 16 * 1024 * 1024
"""Up to this much, where there are more threads than rows but no teams, the input's product is computed by all threads
beforehand: a tenth less time for an LSTM of 256 units at B = 1, T = 100 on 2 cores."""
SCHEDULES = 512
"""How many are kept."""


class Schedule(NamedTuple):
    """What depends on sizes only."""

    kernel: int
    panels: Panels
    launches: list[tuple[int, list[ForwardShape], Pace]]
    """how many threads, a shape for each direction, and how long it took"""
    memory: int
    """bytes"""


@lru_cache(SCHEDULES)
def schedule(
    cell: str,
    dtype: torch.dtype,
    x_shape: tuple[int, ...],
    hidden: int,
    outputs: int,
    heads: int,
    directions: int,
    reverse: bool,
    projected: bool,
    available: int,
    masked: bool = False,
) -> Schedule:
    steps, batch, inputs = x_shape
    contract = KNOWN[cell]
    x_gates, u_gates, others = len(contract.x_gates), len(contract.u_gates), len(contract.states) - 1
    units = panel_units(x_gates, u_gates)
    compiled, pack = kernel(cell, "forward", dtype), kernel(cell, "pack", dtype)
    geometry, item = compiled.geometry, compiled.geometry.itemsize
    head = outputs // heads
    recurrent, panels = u_gates * hidden * head, geometry.panels(hidden, units)
    of = extents(hidden, head, heads, units * geometry.lanes)
    products = x_gates * hidden * inputs + recurrent
    if u_gates or contract.over_units:
        shared = 0 if projected or contract.over_units else recurrent
        slices, team, threads = split(batch, directions, steps, products, shared, item, panels, available)
    else:
        slices, team, threads = split_units(batch, directions, steps, products, panels, available)
    rows = divide_up(batch, slices)
    padded = geometry.padded(hidden, units)
    step = rows * x_gates * padded * item
    chunk = min(steps, max(1, GX_BYTES // (step * geometry.rows)) * geometry.rows)
    owners = directions * slices
    spread = min(available, directions * steps * batch * x_gates * hidden * inputs // WORK_PER_THREAD)
    spreads = team == 1 and spread > owners and steps * step <= SPREAD_BYTES
    parts = divide_up(spread, owners) if spreads else 0
    if parts:
        chunk = steps

    scratch = Arena()
    scratch.take(PANEL_VECTORS * geometry.lanes * item)
    offsets = {
        "tile_at": scratch.take(rows * u_gates * padded * item if contract.over_units else geometry.tile_bytes * team),
        "h_at": scratch.take(2 * rows * geometry.padded(outputs) * item),
        "multiplied_at": scratch.take(rows * geometry.padded(outputs) * item if masked else 0),
        "c_at": scratch.take(others * rows * padded * item),
        "m_at": scratch.take(rows * padded * item if projected else 0),
        "gx_at": scratch.take(chunk * step),
        "kept_at": scratch.take(cell_code(cell).kernel.step_kept * padded * item),
    }
    arena = Arena()
    scratch_at = arena.take(owners * scratch.size)
    laid_out = Panels(pack, arena, available)
    shapes = [
        ForwardShape(
            owners=owners,
            slices=slices,
            steps=steps,
            batch=batch,
            inputs=inputs,
            hidden=hidden,
            outputs=outputs,
            panels=panels,
            extents=of.address,
            depth=of.depth,
            reverse=int(reverse or direction == 1),
            projected=int(projected),
            ys_row=directions * outputs,
            history_row=directions * hidden,
            chunk=chunk,
            parts=-1 if parts else 0,
            team=team,
            **launch.team_functions(),
            tile_size=geometry.tile_bytes,
            w_ih_at=laid_out.rows(hidden, inputs, x_gates, units),
            bias_ih_at=laid_out.rows(hidden, 1, x_gates, units),
            w_hh_at=laid_out.rows(hidden // heads, head, u_gates, units, of) if u_gates else 0,
            bias_hh_at=laid_out.rows(hidden, 1, u_gates, units) if u_gates else 0,
            w_hr_at=laid_out.rows(outputs, hidden, 1, PANEL_VECTORS) if projected else 0,
            scratch_at=scratch_at,
            scratch_size=scratch.size,
            **offsets,
        )
        for direction in range(directions)
    ]
    likely = directions * steps * batch * products * SECONDS_PER_PRODUCT
    kind = ("forward", cell, dtype, batch, inputs, hidden, outputs, heads, directions, parts > 0)
    launches = [(threads, shapes, Pace(kind, steps, likely, threads, meets=team > 1 and u_gates > 0))]
    if parts:
        share = 1 - recurrent / products
        pace = Pace(("inputs", *kind), steps, likely * share, spread)
        launches.insert(0, (spread, [shape._replace(parts=parts) for shape in shapes], pace))
    return Schedule(compiled.address, laid_out, launches, arena.size)
