"""What follows a backward recurrence: the gradients of x and of the weights, by products over all T·B rows at once.

Backends that put gradients where the saved values were hand them over as `dgates` (directions, T, B, W·H), with
W = max(S, G) blocks side by side and zero at t >= length. For a cell that only adds gx and gh they are both dgx and
dgh; `Cell.adds_pre_activations` says what they are for the others. Products are computed in the dtype of `dgates`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.backends import products
from fastrnn.backends.layer import Layer


def input_gradient(layer: Layer, dgates: Tensor) -> Tensor:
    """dx (T, B, I), of all directions together, in the storage dtype."""
    total: Tensor | None = None
    for direction in range(layer.directions):
        rows, w = dgates[direction].flatten(0, 1), layer.w_ih[direction].to(dgates.dtype)
        if not layer.cell.adds_pre_activations:
            rows, w = rows[:, : -layer.hidden_size], w.roll(layer.hidden_size, 0)
        total = rows @ w if total is None else total.addmm_(rows, w)
    assert total is not None
    return total.view(layer.x.shape).to(layer.x.dtype)


def weight_gradients(layer: Layer, dgates: Tensor, ys: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """d w_ih, d w_hh and the biases' gradients, as in `Backward`; ys is (T, B, directions·P or directions·H)."""
    hidden, storage = layer.hidden_size, layer.x.dtype
    x = products.masked_x(layer).to(dgates.dtype).flatten(0, 1)
    d_w_ih, d_w_hh, d_biases = [], [], []
    for direction in range(layer.directions):
        rows = dgates[direction].flatten(0, 1)
        sums = rows.sum(0) if layer.biases else None
        d_h = _recurrent_weights(layer, direction, dgates[direction], ys)
        if layer.cell.adds_pre_activations:
            d_i = rows.T @ x
            d_biases += [] if sums is None else [sums, sums.clone()]
        else:
            d_i = (rows[:, :-hidden].T @ x).roll(-hidden, 0)
            d_biases += [] if sums is None else [sums[:-hidden].roll(-hidden), sums[hidden:].clone()]
        d_w_ih.append(d_i.to(storage))
        d_w_hh.append(d_h.to(storage))
    return d_w_ih, d_w_hh, [d.to(storage) for d in d_biases]


def _recurrent_weights(layer: Layer, direction: int, dgates: Tensor, ys: Tensor) -> Tensor:
    """d w_hh (N, G·D, D) of one direction from its dgates (T, B, W·H)."""
    dgh = dgates if layer.cell.adds_pre_activations else dgates[..., layer.hidden_size :]
    history, state0 = products.direction_slice(layer, direction, ys), layer.states0[0][direction]
    if layer.lengths is None and layer.resets is None and len(history) > 0:
        # What enters a step is what the step before left: two products instead of one and a shifted copy of ys.
        backwards = layer.reversed(direction)
        late, early = (dgh[:-1], history[1:]) if backwards else (dgh[1:], history[:-1])
        d_w_hh = _by_head(layer, dgh[-1 if backwards else 0], state0.to(dgates.dtype))
        return d_w_hh + _by_head(layer, late.flatten(0, 1), early.flatten(0, 1).to(dgates.dtype))
    before = products.state_before(layer, direction, history, state0).to(dgates.dtype)
    return _by_head(layer, dgh.flatten(0, 1), before.flatten(0, 1))


def _by_head(layer: Layer, dgh: Tensor, h: Tensor) -> Tensor:
    """dgh (rows, G·H), gate by gate, and h (rows, P or H) -> their product (N, G·D, D or P)."""
    if layer.heads == 1:
        return (dgh.T @ h)[None]
    gates = dgh.unflatten(1, (len(layer.cell.gates), layer.heads, -1))
    return torch.einsum("rgnk,rnd->ngkd", gates, h.unflatten(1, (layer.heads, -1))).flatten(1, 2)
