"""The reference backend: a loop over the cell's step in plain PyTorch.

It serves every cell, dtype, device, number of heads and projection, and is the oracle that all other backends are
compared with. `forward` is made of differentiable operations only, so that autograd can go through it to any order;
`backward` uses the cells' written derivatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.backends import products
from fastrnn.backends.layer import Backward, Forward, Gradients, Layer, Residuals
from fastrnn.cells.lstm import unprojected_output


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
    saved = [torch.stack([torch.cat(run[2], -1) for run in runs])] if gates and layer.cell.saved else []
    return Forward(states, finals, saved)


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
        if cut is not None:
            states = tuple(torch.where(cut[t][:, None], 0, state) for state in states)
        after, kept = cell.step(gx[t], products.hidden_product(layer, direction, states[0]), states)
        if layer.projected:
            after = (F.linear(after[0], layer.extras[direction].to(dtype)), *after[1:])
        if live is None:
            states = outputs = after
        else:
            row = live[t][:, None]
            outputs = tuple(torch.where(row, new, 0) for new in after)
            kept = tuple(torch.where(row, value, 0) for value in kept)
            states = tuple(torch.where(row, new, old) for new, old in zip(after, states, strict=True))
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


def backward(layer: Layer, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients, by the cells' written derivatives; see `Backward`."""
    runs = [_backward_direction(layer, direction, kept, grads) for direction in range(layer.directions)]
    dtype = layer.x.dtype
    dx, d_states0, d_weights = zip(*runs, strict=True)
    return Backward(
        x=[sum(dx[1:], dx[0]).to(dtype)] if grads.need_x else [],
        w_ih=[weights[0] for weights in d_weights if weights],
        w_hh=[weights[1] for weights in d_weights if weights],
        biases=[bias for weights in d_weights if weights for bias in weights[2]],
        extras=[extra for weights in d_weights if weights for extra in weights[3]],
        states0=[torch.stack(parts).to(dtype) for parts in zip(*d_states0, strict=True)],
    )


def _backward_direction(layer: Layer, direction: int, kept: Residuals, grads: Gradients):  # type: ignore[no-untyped-def]
    """dx (T, B, I), the initial states' gradients (B, F), and the weights' where they are needed."""
    cell, dtype = layer.cell, layer.state_dtype
    steps, batch, _ = layer.x.shape
    histories = [products.direction_slice(layer, direction, state).to(dtype) for state in kept.states]
    before = [
        products.state_before(layer, direction, history, state0[direction])
        for history, state0 in zip(histories, layer.states0, strict=True)
    ]
    if cell.saved and not kept.gates:
        saved = products.recomputed_gates(layer, direction, histories)
    else:
        saved = kept.gates[0][direction].chunk(len(cell.saved), -1) if cell.saved else ()
    incoming = [None if d is None else products.direction_slice(layer, direction, d).to(dtype) for d in grads.states]
    carry = [
        torch.zeros_like(state0[direction], dtype=dtype) if d is None else d[direction].to(dtype)
        for d, state0 in zip(grads.finals, layer.states0, strict=True)
    ]
    live, cut = products.live_steps(layer), products.cuts(layer, direction)
    dgx = layer.x.new_zeros((steps, batch, len(cell.gates), layer.hidden_size), dtype=dtype)
    dgh, dh_out = torch.zeros_like(dgx), torch.zeros_like(histories[0])
    order = range(steps) if layer.reversed(direction) else range(steps - 1, -1, -1)
    for t in order:
        dstates = [d if more is None else d + more[t] for d, more in zip(carry, _padded(incoming, carry), strict=True)]
        dh_out[t] = dstates[0]
        if layer.projected:
            dstates[0] = dstates[0] @ layer.extras[direction].to(dtype)
        dgx_t, dgh_t, d_before = cell.step_backward(
            tuple(dstates), tuple(s[t] for s in saved), tuple(s[t] for s in before), tuple(s[t] for s in histories)
        )
        through_product = products.hidden_product_backward(layer, direction, dgh_t)
        d_before = (through_product if layer.projected else d_before[0] + through_product, *d_before[1:])
        if cut is not None:
            d_before = tuple(torch.where(cut[t][:, None], 0, d) for d in d_before)
        if live is not None:
            row = live[t][:, None]
            d_before = tuple(torch.where(row, new, old) for new, old in zip(d_before, carry, strict=True))
            dgx_t, dgh_t = (torch.where(row[..., None], d, 0) for d in (dgx_t, dgh_t))
            dh_out[t] = torch.where(row, dh_out[t], 0)
        dgx[t], dgh[t], carry = dgx_t, dgh_t, list(d_before)

    dx = dgx.flatten(2) @ layer.w_ih[direction].to(dtype) if grads.need_x else None
    if not grads.need_weights:
        return dx, carry, None
    d_extras = []
    if layer.projected:
        outputs = unprojected_output(saved, histories[1])
        if live is not None:
            outputs = torch.where(live[..., None], outputs, 0)
        d_extras.append((dh_out.flatten(0, 1).T @ outputs.flatten(0, 1)).to(layer.x.dtype))
    return dx, carry, (*products.weight_gradients(layer, direction, dgx, dgh, before[0]), d_extras)


def _padded(incoming: list[Tensor | None], carry: list[Tensor]) -> list[Tensor | None]:
    return incoming + [None] * (len(carry) - len(incoming))
