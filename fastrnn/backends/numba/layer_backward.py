"""The backward of a layer: the recurrence in one launch, then large products over all T·B rows."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.backends import gate_gradients, outside, products
from fastrnn.backends.addresses import address
from fastrnn.backends.layer import Backward, Gradients, Layer, Residuals
from fastrnn.backends.numba import launch, weight_gradients, workspace
from fastrnn.backends.numba.arguments import FIELDS, BackwardAddresses, BackwardShape
from fastrnn.backends.numba.cell_code import cell_code
from fastrnn.backends.numba.compile import kernel
from fastrnn.backends.numba.extents import extents
from fastrnn.backends.numba.forward_schedule import SCHEDULES
from fastrnn.backends.numba.geometry import PANEL_VECTORS, Arena, divide_up
from fastrnn.backends.numba.other_states import place
from fastrnn.backends.numba.panels import Panels, readable, source
from fastrnn.backends.numba.sharing import SECONDS_PER_PRODUCT, Pace
from fastrnn.backends.numba.split import split, split_units
from fastrnn.backends.numba.tensors import (
    cast,
    dense,
    dense_rows,
    direction_address,
    masks,
    step_inputs,
    unit_parameters,
)
from fastrnn.cells.known import KNOWN
from fastrnn.cells.projection import unprojected_output

_COUNTER = FIELDS["backward"].index("counter")
POINTWISE = 16
"""Multiplications that take as long as a unit's share of one block, where there is no product."""
DGATES_BYTES = 256 * 1024
"""Of the gradients, of which x's are computed while they are in a second-level cache of 1 MB beside w_ih."""
LAID_OUT_ROWS = 32
"""Rows of all steps together from which on laying out w_ih for x's gradient is worth it."""
WIDEST_WASTE = 4 / 3
"""Times the inputs that panels of w_ih may be wide: beyond, torch's product does less in vain."""


class _Schedule(NamedTuple):
    """What depends on sizes only."""

    kernel: int
    panels: Panels
    launches: list[tuple[int, list[BackwardShape], Pace]]
    """how many threads, a shape for each direction, and how long it took"""
    memory: int
    """bytes"""
    serves_input: bool
    """whether x's gradient is computed as well, if it is asked for"""


def backward(layer: Layer, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients; see `Backward`."""
    dtype, storage, directions = layer.state_dtype, layer.x.dtype, layer.directions
    steps, batch, _ = layer.x.shape
    hidden, width = layer.hidden_size, len(layer.cell.blocks)
    states = [dense(state, dtype) for state in kept.states]
    saved: list[Tensor] = []
    if kept.gates:
        saved = [dense(kept.gates[0], dtype)]
    elif layer.cell.saved:
        recomputed = (_recomputed(layer, direction, states) for direction in range(directions))
        saved = [torch.stack([torch.cat(parts, -1) for parts in recomputed])]
    gates = (directions, steps, batch, width * hidden)
    if layer.cell.u_gates:
        dgates, lent = workspace.empty(gates, dtype), None
    else:  # nothing else of the call is as large, and clearing fresh memory would be much of its time
        dgates, lent = workspace.lent(gates, dtype)
    dh_out = torch.empty((directions, steps, batch, layer.output_size), dtype=dtype) if layer.projected else None
    d_states0 = [torch.zeros(state.shape, dtype=dtype) for state in layer.states0]
    own, dx = layer.cell.parameters, []
    d_parameters = torch.zeros((directions, batch, len(own), hidden), dtype=dtype) if own else None
    if batch == 0 or steps == 0:
        finals = zip(grads.finals, d_states0, strict=True)
        d_states0 = [zero if d is None else zero.copy_(d) for d, zero in finals]
    else:
        dx = _run(layer, states, saved, grads, dgates, dh_out, d_states0, d_parameters)
    if grads.need_x and not dx:
        dx = [gate_gradients.input_gradient(layer, dgates)]
    weights = _weight_gradients(layer, states, saved, dgates, dh_out) if grads.need_weights else ([], [], [], [])
    of_parameters = []
    if d_parameters is not None and grads.need_weights:
        of_parameters = [*d_parameters.sum(1).to(storage).flatten(0, 1).unbind()]
    inputs_alone = replace(grads, need_weights=False)  # the kernel has summed up those of parameters
    _, d_inputs = outside.of_layer(layer, dgates, saved[0] if saved else None, states, inputs_alone)
    if lent is not None:
        workspace.give_back(lent)
    return Backward(dx, *weights, [d.to(storage) for d in d_states0], of_parameters, d_inputs)


def _recomputed(layer: Layer, direction: int, states: list[Tensor]) -> tuple[Tensor, ...]:
    histories = [products.direction_slice(layer, direction, state) for state in states]
    return products.recomputed_gates(layer, direction, histories)


def _run(
    layer: Layer,
    states: list[Tensor],
    saved: list[Tensor],
    grads: Gradients,
    dgates: Tensor,
    dh_out: Tensor | None,
    d_states0: list[Tensor],
    d_parameters: Tensor | None,
) -> list[Tensor]:
    """Fills dgates (directions, T, B, W·H), dh_out (directions, T, B, P), the initial states' gradients, and each
    sequence's share of those of the cell's parameters, (directions, B, P, H) -> `Backward.x`, if it is found here."""
    dtype, directions = layer.state_dtype, layer.directions
    steps, batch, _ = layer.x.shape
    hidden, outputs = layer.hidden_size, layer.output_size
    cut = _schedule(
        layer.cell_name,
        dtype,
        steps,
        batch,
        hidden,
        outputs,
        layer.heads,
        directions,
        layer.reverse,
        layer.projected,
        _inputs(layer) if grads.need_x else 0,
        launch.available_threads(),
    )
    states0 = [dense(state, dtype) for state in layer.states0]
    incoming = [None if d is None else dense_rows(d, dtype) for d in grads.states]
    incoming += [None] * (len(states) - len(incoming))
    dys, dhistories = incoming[0], incoming[1:]
    if len(dhistories) > 1:  # all of one distance
        dhistories = [None if d is None else d.contiguous() for d in dhistories]
    dhistory = next((d for d in dhistories if d is not None), None)
    d_last = [None if d is None else dense(d, dtype) for d in grads.finals]
    lengths, resets = masks(layer)
    parameters, inputs = unit_parameters(layer), step_inputs(layer)
    mask = None if layer.recurrent_mask is None else dense(layer.recurrent_mask, dtype)
    row = hidden * dtype.itemsize
    c, dc_history = (place(tensors, directions, row) for tensors in (states[1:], dhistories))
    c0, dc_last, dc0 = (place(tensors[1:], directions, batch * row) for tensors in (states0, d_last, d_states0))
    memory = workspace.take(cut.memory)
    weights = [*_by_blocks(layer), *layer.extras]
    dx = []
    if cut.serves_input:
        w_ih = [layer.w_ih[0][run.rows(hidden)] for run in layer.cell.x_runs]
        weights.append(w_ih[0] if len(w_ih) == 1 else torch.cat(w_ih))
        if layer.x.shape[2] == 1:
            weights[-1] = weights[-1].T
        dx.append(workspace.empty(layer.x.shape, dtype))
    weights = readable(weights, dtype)
    if weights:
        cut.panels.launch(map(source, weights)).run(memory.data_ptr())
    addresses = [
        BackwardAddresses(
            counter=0,
            memory=memory.data_ptr(),
            lengths=address(lengths),
            resets=address(resets),
            parameters=direction_address(parameters, direction),
            step_inputs=direction_address(inputs, direction),
            recurrent_mask=direction_address(mask, direction),
            h=address(states[0], direction * outputs),
            c=c.of(direction),
            h0=direction_address(states0[0], direction),
            c0=c0.of(direction),
            saved=direction_address(saved[0], direction) if saved else 0,
            dgates=direction_address(dgates, direction),
            dys=address(dys, direction * outputs),
            dys_step=0 if dys is None else dys.stride(0),
            dys_row=0 if dys is None else dys.stride(1),
            dhistory=dc_history.of(direction),
            dhistory_step=0 if dhistory is None else dhistory.stride(0),
            dhistory_row=0 if dhistory is None else dhistory.stride(1),
            dh_last=direction_address(d_last[0], direction),
            dc_last=dc_last.of(direction),
            dh0=direction_address(d_states0[0], direction),
            dc0=dc0.of(direction),
            d_parameters=direction_address(d_parameters, direction),
            dh_out=direction_address(dh_out, direction),
            dx=dx[0].data_ptr() if dx else 0,
        )
        for direction in range(directions)
    ]
    for threads, shapes, pace in cut.launches:
        blocks = (shape + rest for shape, rest in zip(shapes, addresses, strict=True))
        launch.run(cut.kernel, threads, blocks, _COUNTER, pace)
    workspace.give_back(memory)
    return [cast(d, layer.x.dtype) for d in dx]


def _inputs(layer: Layer) -> int:
    """How many x has, if the kernel is to compute the gradient of x, else 0."""
    steps, batch, inputs = layer.x.shape
    if layer.cell.u_gates or layer.directions > 1 or steps * batch < LAID_OUT_ROWS:
        return 0
    return inputs


def _by_blocks(layer: Layer) -> list[Tensor]:
    """Each direction's w_hh (N·Gu·D, D or P) with each head's rows in the order of the gates' blocks, which follow one
    another."""
    runs, head = layer.cell.u_runs, layer.hidden_size // layer.heads
    if len(runs) > 1:
        return [torch.cat([w[:, run.rows(head)] for run in runs], 1).flatten(0, 1) for w in layer.w_hh]
    return [w.flatten(0, 1) for w in layer.w_hh] if runs else []


@lru_cache(SCHEDULES)
def _schedule(
    cell: str,
    dtype: torch.dtype,
    steps: int,
    batch: int,
    hidden: int,
    outputs: int,
    heads: int,
    directions: int,
    reverse: bool,
    projected: bool,
    inputs: int,
    available: int,
) -> _Schedule:
    contract = KNOWN[cell]
    u_gates, others, head = len(contract.u_gates), len(contract.states) - 1, outputs // heads
    rows_of_w_hh = u_gates * hidden // heads
    compiled, pack = kernel(cell, "backward", dtype), kernel(cell, "pack", dtype)
    geometry, item = compiled.geometry, compiled.geometry.itemsize
    panels = geometry.panels(outputs, PANEL_VECTORS)
    # Of one head the gates follow one another; of several, each gate's share of them does.
    segments = 1 if heads == 1 else u_gates
    width = PANEL_VECTORS * geometry.lanes
    of = extents(outputs, rows_of_w_hh // segments, heads, width) if u_gates else None
    if inputs > 1 and geometry.padded(inputs) > WIDEST_WASTE * inputs:
        inputs = 0
    of_x = len(contract.x_gates) * hidden
    products = rows_of_w_hh * outputs if u_gates else len(contract.blocks) * hidden * POINTWISE + of_x * inputs
    if u_gates or contract.over_units:
        shared = 0 if projected or contract.over_units else products
        slices, team, threads = split(batch, directions, steps, products, shared, item, panels, available)
    else:
        slices, team, threads = split_units(batch, directions, steps, products, panels, available)
    rows = divide_up(batch, slices)
    scratch = Arena()
    scratch.take(PANEL_VECTORS * geometry.lanes * item)
    offsets = {
        "tile_at": scratch.take(geometry.tile_bytes * segments * team),
        "carry_at": scratch.take(rows * geometry.padded(outputs) * item),
        "dc_at": scratch.take(others * rows * geometry.padded(hidden) * item),
        "dh_at": scratch.take(rows * geometry.padded(outputs) * item if projected else 0),
        "kept_at": scratch.take(cell_code(cell).kernel.derivative_kept * geometry.padded(hidden) * item),
        "d_parameters_at": scratch.take(rows * len(contract.parameters) * geometry.padded(hidden) * item),
    }
    arena = Arena()
    scratch_at = arena.take(directions * slices * scratch.size)
    laid_out = Panels(pack, arena, available)
    w_hh = [laid_out.columns(rows_of_w_hh, head, of) if of else 0 for _ in range(directions)]
    w_hr = [laid_out.columns(outputs, hidden) if projected else 0 for _ in range(directions)]
    w_ih = 0
    if inputs:
        w_ih = laid_out.columns(of_x, inputs) if inputs > 1 else laid_out.columns(1, of_x)
    parts = -1 if inputs and team > 1 else 0
    shapes = [
        BackwardShape(
            owners=directions * slices,
            slices=slices,
            steps=steps,
            batch=batch,
            hidden=hidden,
            outputs=outputs,
            reverse=int(reverse or direction == 1),
            projected=int(projected),
            team=team,
            **launch.team_functions(),
            tile_size=geometry.tile_bytes * segments,
            segments=segments,
            extents=of.address if of else 0,
            depth=of.depth * segments if of else 0,
            products_at=min(contract.dgh, default=0) * hidden,
            gates_row=len(contract.blocks) * hidden,
            states_row=directions * hidden,
            w_hh_at=w_hh[direction],
            w_hr_at=w_hr[direction],
            scratch_at=scratch_at,
            scratch_size=scratch.size,
            dc_apart=rows * geometry.padded(hidden),
            inputs=inputs,
            w_ih_at=w_ih,
            chunk=max(1, DGATES_BYTES // (rows * len(contract.blocks) * hidden * item)),
            parts=parts,
            **offsets,
        )
        for direction in range(directions)
    ]
    kind = ("backward", cell, dtype, batch, inputs, hidden, outputs, heads, directions)
    likely = directions * steps * batch * products * SECONDS_PER_PRODUCT
    launches = [(threads, shapes, Pace(kind, steps, likely, threads, meets=team > 1 and u_gates > 0))]
    if parts:
        pace = Pace(("inputs", *kind), steps, likely, threads)
        launches.append((threads, [shape._replace(parts=team) for shape in shapes], pace))
    return _Schedule(compiled.address, laid_out, launches, arena.size, inputs > 0)


def _weight_gradients(
    layer: Layer, states: list[Tensor], saved: list[Tensor], dgates: Tensor, dh_out: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """d w_ih, d w_hh, the biases' and the extras' gradients of every direction."""
    d_extras = []
    if dh_out is not None:
        for direction in range(layer.directions):
            parts = saved[0][direction].chunk(len(layer.cell.saved), -1)
            outputs = unprojected_output(parts, products.direction_slice(layer, direction, states[1]))
            d_w_hr = dh_out[direction].flatten(0, 1).T @ outputs.flatten(0, 1)
            d_extras.append(d_w_hr.to(layer.x.dtype))
    own = weight_gradients.serves(layer)
    found = (weight_gradients if own else gate_gradients).weight_gradients(layer, dgates, states[0])
    return (*found, d_extras)
