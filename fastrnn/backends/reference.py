"""The reference backend: a loop over the cell's step in plain PyTorch.

It serves every cell, dtype, device, number of heads and projection, and is the oracle that all other backends are
compared with. `forward` is made of differentiable operations only, so that autograd can go through it to any order;
`backward` uses the cells' written derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.backends import outside, products
from fastrnn.backends.layer import Backward, Forward, Gradients, Layer, Residuals, as_gates
from fastrnn.cells.contract import States
from fastrnn.cells.projection import unprojected_output


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
    told: list[States] = []
    finals = forward_recurrence(layer, direction, lambda t, outputs, kept: told.append(outputs + kept))
    widths = [state0.shape[-1] for state0 in layer.states0] + [layer.hidden_size for _ in layer.cell.saved]
    rows = _in_time(layer, told, layer.reversed(direction), [(width,) for width in widths])
    return rows[: len(finals)], list(finals), rows[len(finals) :]


def _in_time(layer: Layer, told: list[States], from_the_end: bool, sizes: list[tuple[int, ...]]) -> list[Tensor]:
    """(T, B, *size) each in the state dtype, of what was told of one step after the other, (B, *size) each."""
    if not told:
        return [layer.x.new_empty((0, layer.x.shape[1], *size), dtype=layer.state_dtype) for size in sizes]
    return [torch.stack(rows) for rows in zip(*(told[::-1] if from_the_end else told), strict=True)]


def forward_recurrence(layer: Layer, direction: int, observe: Callable[[int, States, States], None]) -> States:
    """One direction, step by step -> the states after the last step, (B, F) each, all in the state dtype.

    `observe(t, outputs, kept)` is told after each step, in the order of computation, its outputs (B, F), which are zero
    where it is not live, and what the cell saves of it (B, H).
    """
    dtype = layer.state_dtype
    live, cut = products.live_steps(layer), products.cuts(layer, direction)
    gx = products.input_product(layer, direction, dtype).unbind(0)
    inputs = products.inputs_of(layer, direction, dtype)
    states = tuple(state[direction].to(dtype) for state in layer.states0)
    for t in _order(layer, layer.reversed(direction)):
        row, cut_row = (None if mask is None else mask[t] for mask in (live, cut))
        own = tuple(value[t] for value in inputs)
        states, outputs, kept = one_step(layer, direction, gx[t], states, row, cut_row, own)
        observe(t, outputs, kept)
    return states


def _order(layer: Layer, from_the_end: bool) -> range:
    steps = layer.x.shape[0]
    return range(steps - 1, -1, -1) if from_the_end else range(steps)


def one_step(
    layer: Layer,
    direction: int,
    gx: Tensor,
    states: States,
    live: Tensor | None,
    cut: Tensor | None,
    inputs: States = (),
) -> tuple[States, States, States]:
    """One step of one direction: the states after it, the outputs (B, F), and what the cell saves (B, H).

    gx is (B, Gx, H), states are (B, F) each, `live` and `cut` (B,) bool, or None where all rows or none are, and the
    step's inputs (B, H) each.
    """
    dtype = gx.dtype
    parameters = tuple(p.to(dtype) for p in layer.parameters_of(direction))
    if cut is not None:
        states = tuple(torch.where(cut[:, None], 0, state) for state in states)
    gh = products.hidden_product(layer, direction, states[0])
    after, kept = layer.cell.step(gx, gh, states, parameters, inputs)
    if layer.projected:
        after = (F.linear(after[0], layer.extras[direction].to(after[0].dtype)), *after[1:])
    if live is None:
        return after, after, kept
    row = live[:, None]
    outputs, kept = (tuple(torch.where(row, value, 0) for value in values) for values in (after, kept))
    return tuple(torch.where(row, new, old) for new, old in zip(after, states, strict=True)), outputs, kept


class Kept(NamedTuple):
    """What forward left for one direction, in the state dtype."""

    histories: list[Tensor]
    """(T, B, F) each"""
    before: States
    """(T, B, F) each: the states that entered each step"""
    saved: tuple[Tensor, ...]
    """(T, B, H) each, as `Cell.saved` names them"""


class BackwardStep(NamedTuple):
    """What a step gives in a backward recurrence, in the state dtype."""

    blocks: Tensor
    """(B, W, H), as `Cell.blocks` names them, zero where the step is not live"""
    d_after: States
    """(B, F) each: all that reaches the states after the step"""
    d_before: States
    """(B, F) each: what reaches the states before it, zero where it is cut"""


def backward(layer: Layer, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients, by the cells' written derivatives; see `Backward`."""
    dtype = layer.x.dtype
    result = Backward([], [], [], [], [], [])
    dx: list[Tensor] = []
    d_states0, d_parameters, d_inputs = [], [], []
    for direction in range(layer.directions):
        own = kept_of(layer, direction, kept)
        blocks, dh, d_initial = _backward_direction(layer, direction, own, grads)
        dgx, dgh = (layer.cell.of_gates(blocks, places) for places in (layer.cell.dgx, layer.cell.dgh))
        d_states0.append(d_initial)
        if grads.need_weights:
            h = products.multiplied(layer, direction, own.before[0])
            w_ih, w_hh, biases = products.weight_gradients(layer, dgx, dgh, h)
            result.w_ih.append(w_ih)
            result.w_hh.append(w_hh)
            result.biases.extend(biases)
        if grads.need_weights and layer.projected:
            result.extras.append(_projection_gradient(layer, own, dh))
        if layer.parameters or layer.inputs:
            of_parameters, of_inputs = outside.gradients(
                layer, direction, blocks.unbind(-2), own.saved, own.before, tuple(own.histories)
            )
            d_parameters += [d.to(dtype) for d in of_parameters]
            d_inputs.append(of_inputs)
        if grads.need_x:
            dx.append(dgx.flatten(2) @ layer.w_ih[direction].to(dgx.dtype))
    if grads.need_x:
        result.x.append(sum(dx[1:], dx[0]).to(dtype))
    result.states0.extend(torch.stack(parts).to(dtype) for parts in zip(*d_states0, strict=True))
    inputs = [torch.stack(parts).to(dtype) for parts in zip(*d_inputs, strict=True)]
    return result._replace(parameters=d_parameters if grads.need_weights else (), inputs=inputs if grads.need_x else ())


def kept_of(layer: Layer, direction: int, kept: Residuals) -> Kept:
    """One direction's share of what forward left; gates that it did not keep are computed again."""
    dtype = layer.state_dtype
    histories = [products.direction_slice(layer, direction, state).to(dtype) for state in kept.states]
    before = products.states_before(layer, direction, histories)
    saved: tuple[Tensor, ...] = ()
    if kept.gates:
        saved = kept.gates[0][direction].to(dtype).chunk(len(layer.cell.saved), -1)
    elif layer.cell.saved:
        saved = products.recomputed_gates(layer, direction, histories)
    return Kept(histories, before, saved)


def _backward_direction(layer: Layer, direction: int, kept: Kept, grads: Gradients) -> tuple[Tensor, Tensor, States]:
    """The blocks (T, B, W, H), what reaches h after each step (T, B, P or H), and the initial states' gradients."""
    told: list[States] = []

    def observe(t: int, step: BackwardStep) -> None:
        told.append((step.blocks, step.d_after[0]))

    d_states0 = backward_recurrence(layer, direction, kept, grads, observe)
    sizes: list[tuple[int, ...]] = [(len(layer.cell.blocks), layer.hidden_size), (layer.output_size,)]
    blocks, dh = _in_time(layer, told, not layer.reversed(direction), sizes)
    return blocks, dh, d_states0


def backward_recurrence(
    layer: Layer, direction: int, kept: Kept, grads: Gradients, observe: Callable[[int, BackwardStep], None]
) -> States:
    """One direction against its order, step by step -> the gradients of the initial states, (B, F) each.

    `docs/equations.md` derives it. `observe(t, step)` is told after each step, in the order of computation.
    """
    cell, dtype = layer.cell, layer.state_dtype
    incoming = [products.direction_slice(layer, direction, d).to(dtype) if d is not None else 0 for d in grads.states]
    incoming += [0] * (len(cell.states) - len(incoming))
    carry = tuple(
        torch.zeros_like(state0[direction], dtype=dtype) if d is None else d[direction].to(dtype)
        for d, state0 in zip(grads.finals, layer.states0, strict=True)
    )
    live, cut = products.live_steps(layer), products.cuts(layer, direction)
    parameters, inputs = products.own_values(layer, direction, dtype)
    for t in _order(layer, not layer.reversed(direction)):
        d_after = tuple(d + more[t] if isinstance(more, Tensor) else d for d, more in zip(carry, incoming, strict=True))
        d_states = unprojected(layer, direction, d_after)
        before, after = (tuple(s[t] for s in states) for states in (kept.before, kept.histories))
        saved, fed = (tuple(s[t] for s in values) for values in (kept.saved, inputs))
        each, d_before = cell.step_backward(d_states, saved, before, after, parameters, fed)
        blocks = torch.stack(each, -2)
        d_h = products.hidden_product_backward(layer, direction, cell.of_gates(blocks, cell.dgh))
        d_before = (d_h if layer.projected else d_before[0] + d_h, *d_before[1:])
        if cut is not None:
            d_before = tuple(torch.where(cut[t][:, None], 0, d) for d in d_before)
        if live is not None:
            row = live[t][:, None]
            d_before = tuple(torch.where(row, new, old) for new, old in zip(d_before, carry, strict=True))
            blocks = torch.where(row[..., None], blocks, 0)
        carry = d_before
        observe(t, BackwardStep(blocks, d_after, d_before))
    return carry


def unprojected(layer: Layer, direction: int, d_after: States) -> States:
    """What reaches the states of a step before the projection, if there is one, from what reaches them after it."""
    if not layer.projected:
        return d_after
    return d_after[0] @ layer.extras[direction].to(d_after[0].dtype), *d_after[1:]


def _projection_gradient(layer: Layer, kept: Kept, dh: Tensor) -> Tensor:
    """d w_hr (P, H)."""
    outputs = unprojected_output(kept.saved, kept.histories[1])
    live = products.live_steps(layer)
    if live is not None:
        dh, outputs = (torch.where(live[..., None], rows, 0) for rows in (dh, outputs))
    return (dh.flatten(0, 1).T @ outputs.flatten(0, 1)).to(layer.x.dtype)
