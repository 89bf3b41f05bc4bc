"""The backward of a layer: the recurrence in one launch, then large products over all T·B rows."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.backends import products
from fastrnn.backends.layer import Backward, Gradients, Layer, Residuals
from fastrnn.backends.numba import launch
from fastrnn.backends.numba.arguments import FIELDS, BackwardAddresses, BackwardShape
from fastrnn.backends.numba.compile import kernel
from fastrnn.backends.numba.geometry import PANEL_VECTORS, Arena, divide_up
from fastrnn.backends.numba.layer_forward import PLANS
from fastrnn.backends.numba.packing import Packing
from fastrnn.backends.numba.split import split
from fastrnn.backends.numba.tensors import address, cast, dense, dense_rows, direction_address, masks
from fastrnn.cells import CELLS
from fastrnn.cells.lstm import unprojected_output

_COUNTER = FIELDS["backward"].index("counter")


class _Plan(NamedTuple):
    """What depends on sizes only."""

    kernel: int
    packing: Packing
    shapes: list[BackwardShape]
    memory: int
    """bytes"""
    threads: int


def backward(layer: Layer, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients; see `Backward`."""
    dtype, storage, directions = layer.state_dtype, layer.x.dtype, layer.directions
    steps, batch, _ = layer.x.shape
    hidden, width = layer.hidden_size, len(layer.cell.saved) or 1
    states = [dense(state, dtype) for state in kept.states]
    saved: list[Tensor] = []
    if kept.gates:
        saved = [dense(kept.gates[0], dtype)]
    elif layer.cell.saved:
        recomputed = (_recomputed(layer, direction, states) for direction in range(directions))
        saved = [torch.stack([torch.cat(parts, -1) for parts in recomputed])]
    dgates = torch.empty((directions, steps, batch, width * hidden), dtype=dtype)
    dh_out = torch.empty((directions, steps, batch, layer.output_size), dtype=dtype) if layer.projected else None
    d_states0 = [torch.zeros(state.shape, dtype=dtype) for state in layer.states0]
    if batch == 0 or steps == 0:
        finals = zip(grads.finals, d_states0, strict=True)
        d_states0 = [zero if d is None else d.to(dtype, copy=True) for d, zero in finals]
    else:
        _run(layer, states, saved, grads, dgates, dh_out, d_states0)
    dx = [_input_gradient(layer, dgates).to(storage)] if grads.need_x else []
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
    """Fills dgates (directions, T, B, S·H), dh_out (directions, T, B, P) and the initial states' gradients."""
    dtype, directions = layer.state_dtype, layer.directions
    steps, batch, _ = layer.x.shape
    hidden, outputs = layer.hidden_size, layer.output_size
    plan = _plan(
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
    memory = torch.empty(plan.memory, dtype=torch.uint8)
    plan.packing.pack(memory.data_ptr(), [cast(w, dtype) for w in (*(w[0] for w in layer.w_hh), *layer.extras)])
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
        for direction, shape in enumerate(plan.shapes)
    ]
    launch.run(plan.kernel, plan.threads, blocks, _COUNTER)


@lru_cache(PLANS)
def _plan(
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
) -> _Plan:
    gates, saves = len(CELLS[cell].gates), len(CELLS[cell].saved) or 1
    compiled, pack = kernel(cell, "backward", dtype), kernel(cell, "pack", dtype)
    geometry, item = compiled.geometry, compiled.geometry.itemsize
    slices, threads = split(batch, directions, steps, gates * hidden * outputs, available)
    rows = divide_up(batch, slices)
    scratch = Arena()
    scratch.take(PANEL_VECTORS * geometry.lanes * item)
    offsets = {
        "tile_at": scratch.take(geometry.tile * geometry.lanes * item),
        "carry_at": scratch.take(rows * geometry.padded(outputs) * item),
        "dc_at": scratch.take(rows * geometry.padded(hidden) * item),
        "dh_at": scratch.take(rows * geometry.padded(outputs) * item if projected else 0),
    }
    arena = Arena()
    scratch_at = arena.take(directions * slices * scratch.size)
    packing = Packing(pack, arena, available)
    w_hh = [packing.columns(gates * hidden, outputs) for _ in range(directions)]
    w_hr = [packing.columns(outputs, hidden) if projected else 0 for _ in range(directions)]
    shapes = [
        BackwardShape(
            tasks=directions * slices,
            slices=slices,
            steps=steps,
            batch=batch,
            hidden=hidden,
            outputs=outputs,
            reverse=int(reverse or direction == 1),
            projected=int(projected),
            products=gates * hidden,
            products_at=(saves - gates) * hidden,
            gates_row=saves * hidden,
            states_row=directions * hidden,
            w_hh_at=w_hh[direction],
            w_hr_at=w_hr[direction],
            scratch_at=scratch_at,
            scratch_size=scratch.size,
            **offsets,
        )
        for direction in range(directions)
    ]
    return _Plan(compiled.address, packing, shapes, arena.size, threads)


def _is_gru_like(layer: Layer) -> bool:
    """Whether dgx and dgh differ: then one block more than there are gates is saved, dgx is all but the last of them,
    its own last gate first, and dgh all but the first; see `fastrnn.cells.gru`."""
    return len(layer.cell.saved) > len(layer.cell.gates)


def _rolled(tensor: Tensor, size: int) -> Tensor:
    """The last `size` rows put first."""
    return torch.cat((tensor[-size:], tensor[:-size]))


def _input_gradient(layer: Layer, dgates: Tensor) -> Tensor:
    """dx (T, B, I) of all directions together, from dgates (directions, T, B, S·H)."""
    dtype, hidden = layer.state_dtype, layer.hidden_size
    total: Tensor | None = None
    for direction in range(layer.directions):
        rows, w = dgates[direction].flatten(0, 1), layer.w_ih[direction].to(dtype)
        if _is_gru_like(layer):
            rows, w = rows[:, :-hidden], _rolled(w, hidden)
        total = rows @ w if total is None else total.addmm_(rows, w)
    assert total is not None
    return total.view(layer.x.shape)


def _weight_gradients(
    layer: Layer, states: list[Tensor], saved: list[Tensor], dgates: Tensor, dh_out: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """d w_ih, d w_hh, the biases' and the extras' gradients of every direction."""
    dtype, storage, hidden = layer.state_dtype, layer.x.dtype, layer.hidden_size
    d_w_ih, d_w_hh, d_biases, d_extras = [], [], [], []
    x = products.masked_x(layer).to(dtype).flatten(0, 1)
    for direction in range(layer.directions):
        rows = dgates[direction].flatten(0, 1)
        history = products.direction_slice(layer, direction, states[0])
        before = products.state_before(layer, direction, history, layer.states0[0][direction])
        sums = rows.sum(0) if layer.biases else None
        if _is_gru_like(layer):
            d_w_ih.append(_rolled(rows[:, :-hidden].T @ x, 2 * hidden).to(storage))
        else:
            d_w_ih.append((rows.T @ x).to(storage))
        dgh = rows[:, hidden:] if _is_gru_like(layer) else rows
        d_w_hh.append((dgh.T @ before.flatten(0, 1)).to(storage)[None])
        if sums is not None:
            d_biases += _bias_gradients(layer, sums)
        if dh_out is not None:
            parts = saved[0][direction].chunk(len(layer.cell.saved), -1)
            c = products.direction_slice(layer, direction, states[1])
            m = unprojected_output(parts, c).flatten(0, 1)
            d_extras.append((dh_out[direction].flatten(0, 1).T @ m).to(storage))
    return d_w_ih, d_w_hh, d_biases, d_extras


def _bias_gradients(layer: Layer, sums: Tensor) -> list[Tensor]:
    """d b_ih and d b_hh (G·H,), two tensors, from the sum (S·H,) of all rows of dgates."""
    storage, hidden = layer.x.dtype, layer.hidden_size
    if _is_gru_like(layer):
        return [_rolled(sums[:-hidden], 2 * hidden).to(storage), sums[hidden:].to(storage, copy=True)]
    return [sums.to(storage), sums.to(storage, copy=True)]
