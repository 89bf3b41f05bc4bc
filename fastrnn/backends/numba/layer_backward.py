"""The backward of a layer: the recurrence in one launch, then large products over all T·B rows."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.backends import gate_gradients, products
from fastrnn.backends.addresses import address
from fastrnn.backends.layer import Backward, Gradients, Layer, Residuals
from fastrnn.backends.numba import launch, weight_gradients, workspace
from fastrnn.backends.numba.arguments import FIELDS, BackwardAddresses, BackwardShape
from fastrnn.backends.numba.compile import kernel
from fastrnn.backends.numba.forward_schedule import SCHEDULES
from fastrnn.backends.numba.geometry import PANEL_VECTORS, Arena, divide_up
from fastrnn.backends.numba.panels import Panels, readable, source
from fastrnn.backends.numba.sharing import SECONDS_PER_PRODUCT, Pace
from fastrnn.backends.numba.split import split
from fastrnn.backends.numba.tensors import dense, dense_rows, direction_address, masks
from fastrnn.cells.known import KNOWN
from fastrnn.cells.projection import unprojected_output

_COUNTER = FIELDS["backward"].index("counter")


class _Schedule(NamedTuple):
    """What depends on sizes only."""

    kernel: int
    panels: Panels
    shapes: list[BackwardShape]
    memory: int
    """bytes"""
    threads: int
    pace: Pace


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
    dgates = workspace.empty((directions, steps, batch, width * hidden), dtype)
    dh_out = torch.empty((directions, steps, batch, layer.output_size), dtype=dtype) if layer.projected else None
    d_states0 = [torch.zeros(state.shape, dtype=dtype) for state in layer.states0]
    if batch == 0 or steps == 0:
        finals = zip(grads.finals, d_states0, strict=True)
        d_states0 = [zero if d is None else zero.copy_(d) for d, zero in finals]
    else:
        _run(layer, states, saved, grads, dgates, dh_out, d_states0)
    dx = [gate_gradients.input_gradient(layer, dgates)] if grads.need_x else []
    weights = _weight_gradients(layer, states, saved, dgates, dh_out) if grads.need_weights else ([], [], [], [])
    return Backward(dx, *weights, states0=[d.to(storage) for d in d_states0])


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
) -> None:
    """Fills dgates (directions, T, B, W·H), dh_out (directions, T, B, P) and the initial states' gradients."""
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
        directions,
        layer.reverse,
        layer.projected,
        launch.available_threads(),
    )
    state0 = dense(layer.states0[-1], dtype)
    incoming = [None if d is None else dense_rows(d, dtype) for d in grads.states]
    dys, dhistory = (incoming + [None] * 2)[:2]
    d_last = [None if d is None else dense(d, dtype) for d in grads.finals]
    lengths, resets = masks(layer)
    memory = workspace.take(cut.memory)
    weights = readable([*(w[0] for w in layer.w_hh), *layer.extras], dtype)
    cut.panels.launch(map(source, weights)).run(memory.data_ptr())
    blocks = [
        shape
        + BackwardAddresses(
            counter=0,
            memory=memory.data_ptr(),
            lengths=address(lengths),
            resets=address(resets),
            states=address(states[-1], direction * hidden),
            state0=direction_address(state0, direction),
            saved=direction_address(saved[0], direction) if saved else 0,
            dgates=direction_address(dgates, direction),
            dys=address(dys, direction * outputs),
            dys_step=0 if dys is None else dys.stride(0),
            dys_row=0 if dys is None else dys.stride(1),
            dhistory=address(dhistory, direction * hidden),
            dhistory_step=0 if dhistory is None else dhistory.stride(0),
            dhistory_row=0 if dhistory is None else dhistory.stride(1),
            dh_last=direction_address(d_last[0], direction),
            dc_last=direction_address(d_last[-1], direction),
            dh0=direction_address(d_states0[0], direction),
            dc0=direction_address(d_states0[-1], direction),
            dh_out=direction_address(dh_out, direction),
        )
        for direction, shape in enumerate(cut.shapes)
    ]
    launch.run(cut.kernel, cut.threads, blocks, _COUNTER, cut.pace)
    workspace.give_back(memory)


@lru_cache(SCHEDULES)
def _schedule(
    cell: str,
    dtype: torch.dtype,
    steps: int,
    batch: int,
    hidden: int,
    outputs: int,
    directions: int,
    reverse: bool,
    projected: bool,
    available: int,
) -> _Schedule:
    contract = KNOWN[cell]
    rows_of_w_hh = len(contract.u_gates) * hidden
    compiled, pack = kernel(cell, "backward", dtype), kernel(cell, "pack", dtype)
    geometry, item = compiled.geometry, compiled.geometry.itemsize
    products, panels = rows_of_w_hh * outputs, geometry.panels(outputs, PANEL_VECTORS)
    shared = 0 if projected else products
    slices, team, threads = split(batch, directions, steps, products, shared, item, panels, available)
    rows = divide_up(batch, slices)
    scratch = Arena()
    scratch.take(PANEL_VECTORS * geometry.lanes * item)
    offsets = {
        "tile_at": scratch.take(geometry.tile_bytes * team),
        "carry_at": scratch.take(rows * geometry.padded(outputs) * item),
        "dc_at": scratch.take(rows * geometry.padded(hidden) * item),
        "dh_at": scratch.take(rows * geometry.padded(outputs) * item if projected else 0),
    }
    arena = Arena()
    scratch_at = arena.take(directions * slices * scratch.size)
    laid_out = Panels(pack, arena, available)
    w_hh = [laid_out.columns(rows_of_w_hh, outputs) for _ in range(directions)]
    w_hr = [laid_out.columns(outputs, hidden) if projected else 0 for _ in range(directions)]
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
            tile_size=geometry.tile_bytes,
            products=rows_of_w_hh,
            products_at=contract.u_runs[0].block * hidden,
            gates_row=len(contract.blocks) * hidden,
            states_row=directions * hidden,
            w_hh_at=w_hh[direction],
            w_hr_at=w_hr[direction],
            scratch_at=scratch_at,
            scratch_size=scratch.size,
            **offsets,
        )
        for direction in range(directions)
    ]
    kind = ("backward", cell, dtype, batch, hidden, outputs, directions)
    pace = Pace(kind, steps, directions * steps * batch * products * SECONDS_PER_PRODUCT, threads, team > 1)
    return _Schedule(compiled.address, laid_out, shapes, arena.size, threads, pace)


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
