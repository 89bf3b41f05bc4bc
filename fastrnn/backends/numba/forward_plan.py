"""How a forward is cut into tasks, and where in memory everything lies: what depends on sizes only."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from fastrnn.backends.numba import launch
from fastrnn.backends.numba.arguments import ForwardShape
from fastrnn.backends.numba.compile import kernel
from fastrnn.backends.numba.geometry import CACHE_LINE, PANEL_VECTORS, Arena, divide_up, panel_units
from fastrnn.backends.numba.packing import Packing
from fastrnn.backends.numba.split import WORK_PER_THREAD, split
from fastrnn.cells import CELLS

GX_BYTES = 384 * 1024
"""Of a task's input products: with the weights of 256 units of an LSTM they fit a second-level cache of 2 MB."""
SPREAD_BYTES = 16 * 1024 * 1024
"""Up to this much, where there are more threads than rows but no teams, the input's product is computed by all threads
beforehand: a tenth less time for an LSTM of 256 units at B = 1, T = 100 on 2 cores."""
TEAM_PRODUCTS = 50_000
"""Multiplications of a step: below this, meeting after it costs two threads more than sharing it saves."""
TEAM_ROWS = ((2, 512 * 1024), (8, 1536 * 1024))
"""Up to so many rows for each thread, and from so many bytes of recurrent weights on, threads share the units of all
rows rather than have rows of their own: each then reads only its part of the weights. 0.72 to 0.97 of the time for
LSTM and GRU of 256 to 1024 units on 2 cores with second-level caches of 2 MB; more rows, or fewer units, lost up to a
tenth."""
PLANS = 512
"""How many are kept."""


class Plan(NamedTuple):
    """What depends on sizes only."""

    kernel: int
    packing: Packing
    launches: list[tuple[int, list[ForwardShape]]]
    """how many threads, and a shape for each direction"""
    memory: int
    """bytes"""


@lru_cache(PLANS)
def plan(
    cell: str,
    dtype: torch.dtype,
    x_shape: tuple[int, int, int],
    hidden: int,
    outputs: int,
    directions: int,
    reverse: bool,
    projected: bool,
    available: int,
) -> Plan:
    steps, batch, inputs = x_shape
    gates = len(CELLS[cell].gates)
    units = panel_units(gates)
    compiled, pack = kernel(cell, "forward", dtype), kernel(cell, "pack", dtype)
    geometry, item = compiled.geometry, compiled.geometry.itemsize
    slices, threads = split(batch, directions, steps, gates * hidden * (inputs + outputs), available)
    products = gates * hidden * outputs
    if threads > 1 and not projected and _shares_units(batch, products * item, available // directions):
        slices = 1
    rows = divide_up(batch, slices)
    padded = geometry.padded(hidden, units)
    step = rows * gates * padded * item
    chunk = min(steps, max(1, GX_BYTES // (step * geometry.rows)) * geometry.rows)
    owners = directions * slices
    team = _team(available, owners, rows * products, geometry.panels(hidden, units), projected)
    spread = min(available, directions * steps * batch * gates * hidden * inputs // WORK_PER_THREAD)
    spreads = team == 1 and spread > owners and steps * step <= SPREAD_BYTES
    parts = divide_up(spread, owners) if spreads else 0
    if parts:
        chunk = steps

    scratch = Arena()
    scratch.take(PANEL_VECTORS * geometry.lanes * item)
    tile_size = divide_up(geometry.tile * geometry.lanes * item, CACHE_LINE) * CACHE_LINE
    offsets = {
        "tile_at": scratch.take(tile_size * team),
        "h_at": scratch.take(2 * rows * geometry.padded(outputs) * item),
        "c_at": scratch.take(rows * padded * item),
        "m_at": scratch.take(rows * padded * item if projected else 0),
        "gx_at": scratch.take(chunk * step),
    }
    arena = Arena()
    scratch_at = arena.take(owners * scratch.size)
    packing = Packing(pack, arena, available)
    shapes = [
        ForwardShape(
            owners=owners,
            slices=slices,
            steps=steps,
            batch=batch,
            inputs=inputs,
            hidden=hidden,
            outputs=outputs,
            panels=geometry.panels(hidden, units),
            reverse=int(reverse or direction == 1),
            projected=int(projected),
            ys_row=directions * outputs,
            history_row=directions * hidden,
            chunk=chunk,
            parts=-1 if parts else 0,
            team=team,
            thread_count=launch.runtime_address("omp_get_num_threads"),
            barrier=launch.runtime_address("GOMP_barrier"),
            tile_size=tile_size,
            w_ih_at=packing.rows(hidden, inputs, gates),
            bias_ih_at=packing.rows(hidden, 1, gates),
            w_hh_at=packing.rows(hidden, outputs, gates),
            bias_hh_at=packing.rows(hidden, 1, gates),
            w_hr_at=packing.rows(outputs, hidden, 1) if projected else 0,
            scratch_at=scratch_at,
            scratch_size=scratch.size,
            **offsets,
        )
        for direction in range(directions)
    ]
    launches = [(owners * team if team > 1 else threads, shapes)]
    if parts:
        launches.insert(0, (spread, [shape._replace(parts=parts) for shape in shapes]))
    return Plan(compiled.address, packing, launches, arena.size)


def _shares_units(batch: int, weight_bytes: int, threads: int) -> bool:
    """Whether the threads of one direction share the units of all rows."""
    return any(batch <= rows * threads and weight_bytes >= size for rows, size in TEAM_ROWS)


def _team(available: int, owners: int, products: int, panels: int, projected: bool) -> int:
    """How many threads share the hidden units of each of `owners` slices, at `products` multiplications a step."""
    members = min(available // owners, panels)
    if projected or members < 2 or products < TEAM_PRODUCTS:
        return 1
    return members
