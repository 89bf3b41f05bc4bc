"""What surrounds a recurrence: the masks of lengths and resets, and the products over all T·B rows at once.

Backends that compute only the recurrence in a kernel take the rest from here. Everything is plain PyTorch, without
in-place operations on arguments and without synchronisation, and works on any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.backends import masks
from fastrnn.backends.layer import Layer
from fastrnn.cells.contract import States


def _steps(layer: Layer) -> Tensor:
    """(T, 1): 0, 1, ..., T - 1."""
    return torch.arange(layer.x.shape[0], device=layer.x.device)[:, None]


def live_steps(layer: Layer) -> Tensor | None:
    """(T, B) bool: `masks.live` of each step; None where all are."""
    return None if layer.lengths is None else masks.live(_steps(layer), layer.lengths)


def masked_x(layer: Layer) -> Tensor:
    """x (T, B, I) with zeros, selected and not multiplied, wherever t >= length: what lies there may be NaN."""
    live = live_steps(layer)
    return layer.x if live is None else torch.where(live[..., None], layer.x, 0)


def inputs_of(layer: Layer, direction: int, dtype: torch.dtype) -> States:
    """(T, B, H) each in `dtype`: the inputs of one direction's steps, zero at t >= length as in `masked_x`."""
    live = live_steps(layer)
    own = [value[direction].to(dtype) for value in layer.inputs]
    return tuple(value if live is None else torch.where(live[..., None], value, 0) for value in own)


def own_values(layer: Layer, direction: int, dtype: torch.dtype) -> tuple[States, States]:
    """What a cell's functions take last, in `dtype`: its parameters (H,), and `inputs_of` one direction's steps."""
    return tuple(p.to(dtype) for p in layer.parameters_of(direction)), inputs_of(layer, direction, dtype)


def cuts(layer: Layer, direction: int) -> Tensor | None:
    """(T, B) bool: `masks.cut` of what lies between each step and the one before it; None where there are no resets."""
    if layer.resets is None:
        return None
    cut = masks.cut(layer.resets, _steps(layer), layer.lengths)
    return torch.cat((cut[1:], torch.zeros_like(cut[:1]))) if layer.reversed(direction) else cut


def started_steps(layer: Layer, direction: int) -> Tensor | None:
    """(T, B) bool: `masks.starts` of each step; None where the first step of the direction alone does."""
    if layer.lengths is None or not layer.reversed(direction):
        return None
    return masks.starts(_steps(layer), layer.lengths)


def state_before(layer: Layer, direction: int, history: Tensor, state0: Tensor) -> Tensor:
    """The state (T, B, F) that enters each step: `history` (T, B, F), one direction's, shifted by one step.

    The first live step is entered by `state0` (B, F); after a cut, and at t >= length, it is zero.
    """
    first = state0[None].to(history.dtype)
    before = torch.cat((history, first))[1:] if layer.reversed(direction) else torch.cat((first, history))[:-1]
    live, cut, starts = live_steps(layer), cuts(layer, direction), started_steps(layer, direction)
    before = before if starts is None else torch.where(starts[..., None], first, before)
    before = before if live is None else torch.where(live[..., None], before, 0)
    return before if cut is None else torch.where(cut[..., None], 0, before)


def states_before(layer: Layer, direction: int, histories: Sequence[Tensor]) -> States:
    """`state_before` of those states, h first, of which there are histories (T, B, F), one direction's."""
    each = zip(histories, layer.states0, strict=False)
    return tuple(state_before(layer, direction, history, state0[direction]) for history, state0 in each)


def multiplied(layer: Layer, direction: int, h: Tensor) -> Tensor:
    """What of h (..., B, P or H) enters the recurrent product: what recurrent dropout leaves of it, if there is any."""
    mask = layer.recurrent_mask
    return h if mask is None else h * mask[direction].to(h.dtype)


def hidden_product(layer: Layer, direction: int, h: Tensor) -> Tensor:
    """h (..., P or H) times one direction's recurrent weights, plus their bias -> gh (..., Gu, H)."""
    gates = len(layer.cell.u_gates)
    if gates == 0:
        return h.new_empty((*h.shape[:-1], 0, layer.hidden_size))
    h = multiplied(layer, direction, h)
    w_hh = layer.w_hh[direction].to(h.dtype)
    bias = layer.biases[2 * direction + 1].to(h.dtype) if layer.biases else None
    if layer.heads == 1:
        return torch.unflatten(F.linear(h, w_hh[0], bias), -1, (gates, layer.hidden_size))
    gh = product_of_heads(h, w_hh, gates)
    return gh if bias is None else gh + bias.unflatten(0, (gates, -1))


def hidden_product_backward(layer: Layer, direction: int, dgh: Tensor) -> Tensor:
    """dgh (..., Gu, H) -> the gradient of the h (..., P or H) that entered `hidden_product`."""
    w_hh = layer.w_hh[direction].to(dgh.dtype)
    d_h = dgh.flatten(-2) @ w_hh[0] if layer.heads == 1 else product_of_heads_backward(dgh, w_hh)
    return multiplied(layer, direction, d_h)


def product_of_heads(h: Tensor, w_hh: Tensor, gates: int) -> Tensor:
    """Each head's h times its own weights (N, Gu·D, D) -> (..., Gu, H)."""
    gh = torch.bmm(_by_head(h.flatten(0, -2), len(w_hh)), w_hh.transpose(1, 2))
    by_gate = torch.unflatten(gh, 2, (gates, -1)).permute(1, 2, 0, 3).flatten(2)
    return torch.unflatten(by_gate, 0, h.shape[:-1])


def product_of_heads_backward(dgh: Tensor, w_hh: Tensor) -> Tensor:
    """dgh (..., Gu, H) -> the gradient of the h (..., H) that entered `product_of_heads`."""
    dh = torch.bmm(_gates_by_head(dgh.flatten(0, -3), len(w_hh)), w_hh).transpose(0, 1).flatten(1)
    return torch.unflatten(dh, 0, dgh.shape[:-2])


def weights_of_heads(dgh: Tensor, h: Tensor, heads: int) -> Tensor:
    """The gradient of `product_of_heads`'s weights, from dgh (rows, Gu, H) and h (rows, H)."""
    return torch.bmm(_gates_by_head(dgh, heads).transpose(1, 2), _by_head(h, heads))


def _by_head(h: Tensor, heads: int) -> Tensor:
    """(N, rows, D) from (rows, H)."""
    return torch.unflatten(h, 1, (heads, -1)).transpose(0, 1)


def _gates_by_head(dgh: Tensor, heads: int) -> Tensor:
    """(N, rows, Gu·D) from (rows, Gu, H)."""
    return torch.unflatten(dgh, 2, (heads, -1)).permute(2, 0, 1, 3).flatten(2)


def input_product(layer: Layer, direction: int, dtype: torch.dtype) -> Tensor:
    """gx (T, B, Gx, H) in `dtype`: the input's share of the pre-activations, with its bias."""
    bias = layer.biases[2 * direction].to(dtype) if layer.biases else None
    gx = F.linear(masked_x(layer).to(dtype), layer.w_ih[direction].to(dtype), bias)
    return torch.unflatten(gx, -1, (len(layer.cell.x_gates), layer.hidden_size))


def recomputed_gates(layer: Layer, direction: int, states: list[Tensor]) -> tuple[Tensor, ...]:
    """What `Cell.saved` names, (T, B, H) each, from x and the histories of one direction (T, B, P or H).

    Every state that entered a step is known, so that two products over all steps give all pre-activations.
    """
    dtype = layer.state_dtype
    before = states_before(layer, direction, [history.to(dtype) for history in states])
    gx, gh = input_product(layer, direction, dtype), hidden_product(layer, direction, before[0])
    return layer.cell.step(gx, gh, before, *own_values(layer, direction, dtype))[1]


def direction_slice(layer: Layer, direction: int, history: Tensor) -> Tensor:
    """One direction's share (T, B, F) of a history (T, B, directions·F)."""
    return history.chunk(layer.directions, -1)[direction]


def weight_gradients(layer: Layer, dgx: Tensor, dgh: Tensor, h: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """d w_ih, d w_hh, d biases from dgx (T, B, Gx, H), dgh (T, B, Gu, H), zero at t >= length, and what of the h
    that entered each step was `multiplied`."""
    dgx_rows, dgh_rows = dgx.flatten(2).flatten(0, 1), dgh.flatten(2).flatten(0, 1)
    h_rows = h.flatten(0, 1).to(dgh.dtype)
    d_w_ih = dgx_rows.T @ masked_x(layer).flatten(0, 1).to(dgx.dtype)
    if layer.heads == 1:
        d_w_hh = (dgh_rows.T @ h_rows)[None]
    else:
        d_w_hh = weights_of_heads(dgh.flatten(0, 1), h_rows, layer.heads)
    dtype = layer.x.dtype
    biases = [dgx_rows.sum(0).to(dtype), dgh_rows.sum(0).to(dtype)] if layer.biases else []
    return d_w_ih.to(dtype), d_w_hh.to(dtype), biases
