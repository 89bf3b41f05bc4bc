"""Way 4: a product and a launch for each step, for what no program can hold; see `kernels/steps.py`.

All that a step needs is allocated before the first: the loops below only put work into the device's queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends import masks
from fastrnn.backends.layer import Layer
from fastrnn.backends.recurrence.buffers import BackwardBuffers, ForwardBuffers
from fastrnn.backends.triton.configurations import padded
from fastrnn.backends.triton.constants import cell_constants
from fastrnn.backends.triton.kernels.steps import backward_step_kernel, forward_step_kernel
from fastrnn.backends.triton.launch import Grid, Launcher

TILE = 128
"""Elements of a program. A step is short, what counts is that all multiprocessors take part: 16 sequences of 1024 units
are 128 programs. Four units a thread are 16 bytes of float32, one load of a vector."""
THREAD = 4
"""Units of a thread."""
THREADS_OF_A_WARP = 32
MOST_WARPS = 16
"""Of a program that holds whole rows, since its cell takes means over them."""
STAGES = 1
"""There is no loop whose loads could be asked for ahead."""


def forward(layer: Layer, buffers: ForwardBuffers) -> None:
    """Fills histories, gates and finals."""
    storage, exact = layer.x.dtype, layer.state_dtype
    steps, batch, _ = layer.x.shape
    starts = [_by_head(layer, state0) for state0 in buffers.states0]
    states = [_dense_copy(starts[0], storage), *(_dense_copy(start, exact) for start in starts[1:])]
    h = states[0]
    reads_h = layer.cell.states[0] in layer.cell.step_reads
    h_exact = _dense_copy(starts[0], exact) if reads_h and storage != exact else None
    for direction in range(layer.directions):
        cut = _first_cut(layer, direction)
        for tensor in (*states, h_exact):
            if tensor is not None and cut is not None:
                tensor[direction].masked_fill_(cut[:, None], 0)
    mask = None if buffers.recurrent_mask is None else _by_head(layer, buffers.recurrent_mask)
    h_multiplied = None if mask is None else torch.mul(h, mask, out=torch.empty_like(h))
    entering = h if h_multiplied is None else h_multiplied
    gh = h.new_empty((*h.shape[:-1], buffers.w_hh[0].shape[1]))
    products = [(entering[direction], w.transpose(1, 2), gh[direction]) for direction, w in enumerate(buffers.w_hh)]
    arguments = (
        buffers.gx,
        gh,
        buffers.b_hh[0] if buffers.b_hh else None,
        buffers.b_hh[-1] if buffers.b_hh else None,
        buffers.parameters,
        tuple(buffers.inputs) or None,
        buffers.masks.lengths,
        buffers.masks.resets,
        buffers.recurrent_mask,
        tuple(states),
        h_exact,
        h_multiplied,
        tuple(buffers.histories),
        buffers.gates,
        steps,
        batch,
        int(layer.reverse),
    )
    constants, grid, warps = _compiled_for(layer)
    launch = Launcher(forward_step_kernel, (*arguments, 0), constants, warps, STAGES)
    for s in range(steps):
        for a, b, out in products:
            torch.bmm(a, b, out=out)
        launch(grid, *arguments, s)
    for final, state in zip(buffers.finals, states, strict=True):
        _by_head(layer, final).copy_(state)


def backward(layer: Layer, buffers: BackwardBuffers) -> None:
    """Fills dgates and d_states0."""
    steps, batch, _ = layer.x.shape
    flowing = [_dense_copy(_by_head(layer, d), layer.state_dtype) for d in buffers.d_finals or buffers.states0]
    if not buffers.d_finals:
        for d in flowing:
            d.zero_()
    dh = flowing[0]
    product = torch.empty_like(dh, dtype=layer.x.dtype)
    in_place = layer.heads == 1 and len(layer.cell.u_runs) == 1
    dgh = None if in_place else product.new_empty((*product.shape[:-1], buffers.w_hh[0].shape[1]))
    products = [
        (_operands(layer, direction, buffers.dgates, dgh), w, product[direction])
        for direction, w in enumerate(buffers.w_hh)
    ]
    arguments = (
        tuple(buffers.histories),
        buffers.gates,
        tuple(buffers.states0),
        buffers.parameters,
        tuple(buffers.inputs) or None,
        buffers.masks.lengths,
        buffers.masks.resets,
        buffers.recurrent_mask,
        buffers.given_or_any,
        product,
        tuple(flowing),
        buffers.dgates,
        dgh,
        steps,
        batch,
        int(layer.reverse),
    )
    constants, grid, warps = _compiled_for(layer)
    constants["GIVEN"] = buffers.given
    constants["ARE_PREACTIVATIONS"] = buffers.are_preactivations
    launch = Launcher(backward_step_kernel, (*arguments, 0), constants, warps, STAGES)
    for s in range(steps):
        launch(grid, *arguments, s)
        for operands, w, out in products:
            torch.bmm(operands[s], w, out=out)
    for direction in range(layer.directions):
        cut = _first_cut(layer, direction)
        if cut is not None:
            product[direction].masked_fill_(cut[:, None], 0)
    mask = buffers.recurrent_mask
    dh += product if mask is None else product * _by_head(layer, mask).to(dh.dtype)
    for d_state0, d in zip(buffers.d_states0, flowing, strict=True):
        _by_head(layer, d_state0).copy_(d)


def _operands(layer: Layer, direction: int, dgates: Tensor, dgh: Tensor | None) -> Sequence[Tensor]:
    """What w_hh is multiplied with after each step, in the order of computation: dgh (N, B, GU·D)."""
    if dgh is not None:
        return [dgh[direction]] * layer.x.shape[0]
    (run,) = layer.cell.u_runs
    of_h = dgates[direction].narrow(-1, run.block * layer.hidden_size, run.count * layer.hidden_size)
    in_time = of_h[:, None].unbind()
    return in_time if layer.reversed(direction) else in_time[::-1]


def _by_head(layer: Layer, state: Tensor) -> Tensor:
    """A view (directions, N, B, D) of a state (directions, B, H)."""
    return torch.unflatten(state, -1, (layer.heads, -1)).transpose(1, 2)


def _dense_copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _first_cut(layer: Layer, direction: int) -> Tensor | None:
    """(B,) bool: whether a reset cuts where the initial states enter the first step; None where none can."""
    if layer.resets is None or layer.reversed(direction):
        return None
    return masks.cut(layer.resets[0], 0, layer.lengths)


def _compiled_for(layer: Layer) -> tuple[dict[str, Any], Grid, int]:
    """The compile-time arguments of a launch, its programs, and the warps of each."""
    units = layer.hidden_size // layer.heads
    rows, across, warps = tile_of(layer)
    constants = cell_constants(layer) | {"D": units, "ROWS": rows, "UNITS": across}
    return constants, (-(-layer.x.shape[1] // rows) * -(-units // across), layer.heads, layer.directions), warps


def tile_of(layer: Layer) -> tuple[int, int, int]:
    """The sequences and units of a program that computes no product, and its warps: one, unless it must hold a row."""
    width = padded(layer.hidden_size // layer.heads)
    across = width if layer.cell.over_units else min(TILE, width)
    warps = max(TILE, across) // (THREAD * THREADS_OF_A_WARP)
    return max(1, TILE // across), across, min(warps, MOST_WARPS)
