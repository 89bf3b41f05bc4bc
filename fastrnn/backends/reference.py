"""The reference backend: a loop over the cell's step in plain PyTorch.

It serves every cell, dtype, device, number of heads and projection, and is the oracle that all other backends are
compared with. `forward` is made of differentiable operations only, so that autograd can go through it to any order;
`backward` uses the cells' written derivatives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.backends import products
from fastrnn.backends.layer import Backward, Forward, Gradients, Layer, Residuals, as_gates
from fastrnn.cells.lstm import unprojected_output
from fastrnn.cells.spec import States


def ready() -> str | None:
    """None: it needs nothing but torch."""
    return None


def supports(layer: Layer) -> str | None:
    """None: it serves every layer."""
    return None


def forward(layer: Layer, *, history: bool, gates: bool) -> Forward:
    """One layer's outputs; see `Forward`."""
    runs = [_forward_direction(layer, direction) for direction in range(layer.directions)]
    dtype = layer.x.dtype
    histories = [torch.cat(parts, -1) for parts in zip(*(run[0] for run in runs), strict=True)]
    finals = [torch.stack(parts).to(dtype) for parts in zip(*(run[1] for run in runs), strict=True)]
    states = [histories[0].to(dtype), *(histories[1:] if history else ())]
    if not (gates and layer.cell.saved):
        return Forward(states, finals, [])
    saved = torch.stack([torch.cat(run[2], -1) for run in runs])
    return Forward(states, finals, [as_gates(saved, layer.gate_dtype)])


def _forward_direction(layer: Layer, direction: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Histories (T, B, F), final states (B, F) and what the cell saves (T, B, H), all in the state dtype."""
    cell, dtype = layer.cell, layer.state_dtype
    steps, batch = layer.x.shape[:2]
    live, cut = products.live_steps(layer), products.cuts(layer, direction)
    gx = products.input_product(layer, direction, dtype).unbind(0)
    states = tuple(state[direction].to(dtype) for state in layer.states0)
    histories: list[list[Tensor]] = [[] for _ in cell.states]
    saved: list[list[Tensor]] = [[] for _ in cell.saved]
    order = range(steps - 1, -1, -1) if layer.reversed(direction) else range(steps)
    for t in order:
        rows = [None if mask is None else mask[t] for mask in (live, cut)]
        states, outputs, kept = one_step(layer, direction, gx[t], states, *rows)
        for values, value in zip(histories + saved, outputs + kept, strict=True):
            values.append(value)

    def stacked(values: list[Tensor], width: int) -> Tensor:
        in_time = values[::-1] if layer.reversed(direction) else values
        return torch.stack(in_time) if in_time else layer.x.new_empty((0, batch, width), dtype=dtype)

    hidden = layer.hidden_size
    widths = [state.shape[-1] for state in layer.states0]
    return (
        [stacked(values, width) for values, width in zip(histories, widths, strict=True)],
        list(states),
        [stacked(values, hidden) for values in saved],
    )


def one_step(
    layer: Layer, direction: int, gx: Tensor, states: States, live: Tensor | None, cut: Tensor | None
) -> tuple[States, States, States]:
    """One step of one direction: the states after it, the outputs (B, F), and what the cell saves (B, H).

    gx is (B, G, H), states are (B, F) each, `live` and `cut` (B,) bool, or None where all rows or none are.
    """
    if cut is not None:
        states = tuple(torch.where(cut[:, None], 0, state) for state in states)
    after, kept = layer.cell.step(gx, products.hidden_product(layer, direction, states[0]), states)
    if layer.projected:
        after = (F.linear(after[0], layer.extras[direction].to(after[0].dtype)), *after[1:])
    if live is None:
        return after, after, kept
    row = live[:, None]
    outputs, kept = (tuple(torch.where(row, value, 0) for value in values) for values in (after, kept))
    return tuple(torch.where(row, new, old) for new, old in zip(after, states, strict=True)), outputs, kept


class _Kept(NamedTuple):
    """What forward left for one direction, in the state dtype."""

    histories: list[Tensor]
    """(T, B, F) each"""
    before: list[Tensor]
    """(T, B, F) each: the states that entered each step"""
    saved: tuple[Tensor, ...]
    """(T, B, H) each, as `Cell.saved` names them"""


class _Flow(NamedTuple):
    """What a direction's reversed recurrence gives, in the state dtype."""

    dgx: Tensor
    """(T, B, G, H), zero at t >= length"""
    dgh: Tensor
    """as `dgx`"""
    dh: Tensor
    """(T, B, P or H), zero at t >= length: everything that reaches the output h of a step"""
    d_states0: list[Tensor]
    """(B, F) each"""


def backward(layer: Layer, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients, by the cells' written derivatives; see `Backward`."""
    dtype = layer.x.dtype
    result = Backward([], [], [], [], [], [])
    flows = []
    for direction in range(layer.directions):
        own = _kept(layer, direction, kept)
        flow = _reversed_recurrence(layer, direction, own, grads)
        flows.append(flow)
        if grads.need_weights:
            w_ih, w_hh, biases = products.weight_gradients(layer, direction, flow.dgx, flow.dgh, own.before[0])
            result.w_ih.append(w_ih)
            result.w_hh.append(w_hh)
            result.biases.extend(biases)
        if grads.need_weights and layer.projected:
            result.extras.append(_projection_gradient(layer, own, flow.dh))
    if grads.need_x:
        shares = [flow.dgx.flatten(2) @ w.to(flow.dgx.dtype) for flow, w in zip(flows, layer.w_ih, strict=True)]
        result.x.append(sum(shares[1:], shares[0]).to(dtype))
    result.states0.extend(
        torch.stack(parts).to(dtype) for parts in zip(*(flow.d_states0 for flow in flows), strict=True)
    )
    return result


def _kept(layer: Layer, direction: int, kept: Residuals) -> _Kept:
    dtype = layer.state_dtype
    histories = [products.direction_slice(layer, direction, state).to(dtype) for state in kept.states]
    before = [
        products.state_before(layer, direction, history, state0[direction])
        for history, state0 in zip(histories, layer.states0, strict=True)
    ]
    saved: tuple[Tensor, ...] = ()
    if kept.gates:
        saved = kept.gates[0][direction].to(dtype).chunk(len(layer.cell.saved), -1)
    elif layer.cell.saved:
        saved = products.recomputed_gates(layer, direction, histories)
    return _Kept(histories, before, saved)


def _reversed_recurrence(layer: Layer, direction: int, kept: _Kept, grads: Gradients) -> _Flow:
    cell, dtype = layer.cell, layer.state_dtype
    steps, batch = layer.x.shape[:2]
    incoming = [products.direction_slice(layer, direction, d).to(dtype) if d is not None else 0 for d in grads.states]
    incoming += [0] * (len(cell.states) - len(incoming))
    carry = [
        torch.zeros_like(state0[direction], dtype=dtype) if d is None else d[direction].to(dtype)
        for d, state0 in zip(grads.finals, layer.states0, strict=True)
    ]
    live, cut = products.live_steps(layer), products.cuts(layer, direction)
    dgx = layer.x.new_zeros((steps, batch, len(cell.gates), layer.hidden_size), dtype=dtype)
    dgh, dh = torch.zeros_like(dgx), torch.zeros_like(kept.histories[0])
    for t in range(steps) if layer.reversed(direction) else range(steps - 1, -1, -1):
        d_after = [d + more[t] if isinstance(more, Tensor) else d for d, more in zip(carry, incoming, strict=True)]
        dh_t = d_after[0]
        if layer.projected:
            d_after[0] = dh_t @ layer.extras[direction].to(dtype)
        before, after = (tuple(s[t] for s in states) for states in (kept.before, kept.histories))
        dgx_t, dgh_t, d_before = cell.step_backward(tuple(d_after), tuple(s[t] for s in kept.saved), before, after)
        d_h = products.hidden_product_backward(layer, direction, dgh_t)
        d_before = (d_h if layer.projected else d_before[0] + d_h, *d_before[1:])
        if cut is not None:
            d_before = tuple(torch.where(cut[t][:, None], 0, d) for d in d_before)
        if live is not None:
            row = live[t][:, None]
            d_before = tuple(torch.where(row, new, old) for new, old in zip(d_before, carry, strict=True))
            dgx_t, dgh_t = torch.where(row[..., None], dgx_t, 0), torch.where(row[..., None], dgh_t, 0)
            dh_t = torch.where(row, dh_t, 0)
        dgx[t], dgh[t], dh[t], carry = dgx_t, dgh_t, dh_t, list(d_before)
    return _Flow(dgx, dgh, dh, carry)


def _projection_gradient(layer: Layer, kept: _Kept, dh: Tensor) -> Tensor:
    """d w_hr (P, H)."""
    outputs = unprojected_output(kept.saved, kept.histories[1])
    live = products.live_steps(layer)
    if live is not None:
        outputs = torch.where(live[..., None], outputs, 0)
    return (dh.flatten(0, 1).T @ outputs.flatten(0, 1)).to(layer.x.dtype)
