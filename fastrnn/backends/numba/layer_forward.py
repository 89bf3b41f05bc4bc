"""The forward of a layer: memory, packed weights, and one launch."""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.backends.layer import Forward, Layer, as_gates
from fastrnn.backends.numba import launch, unpacked
from fastrnn.backends.numba.arguments import FIELDS, ForwardAddresses, ForwardShape
from fastrnn.backends.numba.compile import kernel
from fastrnn.backends.numba.geometry import CACHE_LINE, PANEL_VECTORS, Arena, divide_up, panel_units
from fastrnn.backends.numba.packing import Packing
from fastrnn.backends.numba.split import WORK_PER_THREAD, split
from fastrnn.backends.numba.tensors import address, cast, dense, dense_rows, direction_address, masks
from fastrnn.cells import CELLS

GX_BYTES = 384 * 1024
"""Of a task's input products: with the weights of 256 units of an LSTM they fit a second-level cache of 2 MB."""
SPREAD_BYTES = 16 * 1024 * 1024
"""Up to this much, where there are more threads than rows but no teams, the input's product is computed by all threads
beforehand: a tenth less time for an LSTM of 256 units at B = 1, T = 100 on 2 cores."""
TEAM_PRODUCTS = 50_000
"""Multiplications of a step: below this, meeting after it costs two threads more than sharing it saves."""
PLANS = 512
"""How many are kept."""
_COUNTER = FIELDS["forward"].index("counter")


class _Plan(NamedTuple):
    """What depends on sizes only."""

    kernel: int
    packing: Packing
    launches: list[tuple[int, list[ForwardShape]]]
    """how many threads, and a shape for each direction"""
    memory: int
    """bytes"""


def forward(layer: Layer, *, history: bool, gates: bool) -> Forward:
    """One layer's outputs; see `Forward`."""
    if not history and not gates and unpacked.serves(layer):
        return unpacked.forward(layer)
    dtype, storage, directions = layer.state_dtype, layer.x.dtype, layer.directions
    steps, batch, _ = layer.x.shape
    hidden, saves = layer.hidden_size, len(layer.cell.saved)
    has_c = len(layer.states0) > 1
    ys = torch.empty((steps, batch, directions * layer.output_size), dtype=dtype)
    c_history = torch.empty((steps, batch, directions * hidden), dtype=dtype) if history and has_c else None
    saved = torch.empty((directions, steps, batch, saves * hidden), dtype=dtype) if gates and saves else None
    if batch == 0 or steps == 0:
        finals = [state.clone() for state in layer.states0]
    else:
        last = [torch.empty(state.shape, dtype=dtype) for state in layer.states0]
        _run(layer, ys, c_history, saved, last)
        finals = [cast(state, storage) for state in last]
    histories = [] if c_history is None else [c_history]
    return Forward(
        [cast(ys, storage), *histories], finals, [] if saved is None else [as_gates(saved, layer.gate_dtype)]
    )


def _run(layer: Layer, ys: Tensor, c_history: Tensor | None, saved: Tensor | None, last: list[Tensor]) -> None:
    """Fills ys and c_history (T, B, directions·F), saved (directions, T, B, S·H) and last (directions, B, F)."""
    dtype, directions = layer.state_dtype, layer.directions
    hidden, outputs = layer.hidden_size, layer.output_size
    plan = _plan(
        layer.cell_name,
        dtype,
        tuple(layer.x.shape),
        hidden,
        outputs,
        directions,
        layer.reverse,
        layer.projected,
        launch.available_threads(),
    )
    x = dense_rows(layer.x, dtype)
    states0 = [dense(state, dtype) for state in layer.states0]
    lengths, resets = masks(layer)
    memory = torch.empty(plan.memory, dtype=torch.uint8)
    plan.packing.pack(memory.data_ptr(), _weights(layer))
    addresses = [
        ForwardAddresses(
            counter=0,
            memory=memory.data_ptr(),
            lengths=address(lengths),
            resets=address(resets),
            x=x.data_ptr(),
            x_step=x.stride(0),
            x_row=x.stride(1),
            h0=direction_address(states0[0], direction),
            c0=direction_address(states0[-1], direction),
            ys=address(ys, direction * outputs),
            history=address(c_history, direction * hidden),
            saved=direction_address(saved, direction),
            h_last=direction_address(last[0], direction),
            c_last=direction_address(last[-1], direction),
        )
        for direction in range(directions)
    ]
    for threads, shapes in plan.launches:
        launch.run(plan.kernel, threads, map(operator.add, shapes, addresses), _COUNTER)


def _weights(layer: Layer) -> list[Tensor]:
    """The matrices that are packed: w_ih, b_ih, w_hh, b_hh and w_hr, if any, of each direction; biases as columns."""
    dtype = layer.state_dtype
    no_bias = None if layer.biases else torch.zeros((layer.w_ih[0].shape[0], 1), dtype=dtype)
    weights = []
    for direction in range(layer.directions):
        biases = [
            no_bias if no_bias is not None else cast(layer.biases[2 * direction + which], dtype)[:, None]
            for which in range(2)
        ]
        weights += [cast(layer.w_ih[direction], dtype), biases[0], cast(layer.w_hh[direction], dtype)[0], biases[1]]
        if layer.projected:
            weights.append(cast(layer.extras[direction], dtype))
    return weights


@lru_cache(PLANS)
def _plan(
    cell: str,
    dtype: torch.dtype,
    x_shape: tuple[int, int, int],
    hidden: int,
    outputs: int,
    directions: int,
    reverse: bool,
    projected: bool,
    available: int,
) -> _Plan:
    steps, batch, inputs = x_shape
    gates = len(CELLS[cell].gates)
    units = panel_units(gates)
    compiled, pack = kernel(cell, "forward", dtype), kernel(cell, "pack", dtype)
    geometry, item = compiled.geometry, compiled.geometry.itemsize
    slices, threads = split(batch, directions, steps, gates * hidden * (inputs + outputs), available)
    rows = divide_up(batch, slices)
    padded = geometry.padded(hidden, units)
    step = rows * gates * padded * item
    chunk = min(steps, max(1, GX_BYTES // (step * geometry.rows)) * geometry.rows)
    owners = directions * slices
    team = _team(available, owners, rows * gates * hidden * outputs, geometry.panels(hidden, units), projected)
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
    return _Plan(compiled.address, packing, launches, arena.size)


def _team(available: int, owners: int, products: int, panels: int, projected: bool) -> int:
    """How many threads share the hidden units of each of `owners` slices, at `products` multiplications a step."""
    members = min(available // owners, panels)
    if projected or members < 2 or products < TEAM_PRODUCTS:
        return 1
    return members
