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

SUMMANDS = 128
"""Rows that are summed at a time. From 256 values a thread on, torch's kernel for GPUs has blocks share a sum, and it
takes 128 times the memory that their shares fill: 128 MiB for 16384 rows of 1024 columns, 32 MiB themselves."""


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
    d_w_ih, d_biases = [], []
    x = products.masked_x(layer).to(dgates.dtype).flatten(0, 1)
    for direction in range(layer.directions):
        rows = dgates[direction].flatten(0, 1)
        adds = layer.cell.adds_pre_activations
        d_i = rows.T @ x if adds else (rows[:, :-hidden].T @ x).roll(-hidden, 0)
        d_w_ih.append(d_i.to(storage))
        if layer.biases:
            d_biases += _bias_gradients(layer, rows)
    del x  # a copy where there are lengths: gone before h needs one
    d_w_hh = [_recurrent_weights(layer, direction, dgates[direction], ys) for direction in range(layer.directions)]
    return d_w_ih, d_w_hh, d_biases


def entering(layer: Layer, direction: int, ys: Tensor) -> list[tuple[slice, Tensor]]:
    """What h (rows, P or H) enters which of a direction's T·B rows, all of them together.

    Without masks these are two views, of ys and of the initial state. Else they are one copy, which is masked in place:
    zero after a cut and at t >= length.
    """
    history, state0 = products.direction_slice(layer, direction, ys), layer.states0[0][direction]
    backwards = layer.reversed(direction)
    T, B, _ = history.shape
    if layer.lengths is None and layer.resets is None and T > 0:
        # What enters a step is what the step before left.
        if backwards:
            return [(slice((T - 1) * B, None), state0), (slice((T - 1) * B), history[1:].flatten(0, 1))]
        return [(slice(B), state0), (slice(B, None), history[:-1].flatten(0, 1))]
    before = history.new_empty(history.shape)
    if backwards:
        before[:-1], before[-1:] = history[1:], state0
    else:
        before[1:], before[:1] = history[:-1], state0
    starts = products.started_steps(layer, direction)
    if starts is not None:
        torch.where(starts[..., None], state0.to(before.dtype), before, out=before)
    live, cut = products.live_steps(layer), products.cuts(layer, direction)
    for dropped in (None if live is None else ~live, cut):
        if dropped is not None:
            before.masked_fill_(dropped[..., None], 0)
    return [(slice(None), before.flatten(0, 1))]


def add_products(layer: Layer, total: Tensor, left: Tensor, right: Tensor, keep: bool = True) -> None:
    """Adds each head's leftᵀ right to `total` (N, G·D, P or D), or with `keep` false puts it there.

    `left` is (rows, G·H), gate by gate, `right` (rows, P or H). Heads are strided views: a product of all at once would
    need a copy of `left`.
    """
    if layer.heads == 1:
        total[0].addmm_(left.T, right, beta=int(keep))
        return
    lefts = left.unflatten(1, (len(layer.cell.gates), layer.heads, -1))
    rights = right.unflatten(1, (layer.heads, -1)).transpose(0, 1)
    for gate, rows in enumerate(total.chunk(len(layer.cell.gates), 1)):
        rows.baddbmm_(lefts[:, gate].permute(1, 2, 0), rights, beta=int(keep))


def add_hidden_product(layer: Layer, direction: int, gh: Tensor, h: Tensor) -> None:
    """Adds h (rows, P or H) times one direction's recurrent weights, without their bias, to `gh` (rows, G·H)."""
    w_hh = layer.w_hh[direction]
    if layer.heads == 1:
        gh.addmm_(h, w_hh[0].T)
        return
    hs = h.unflatten(1, (layer.heads, -1)).transpose(0, 1)
    for rows, w in zip(gh.chunk(len(layer.cell.gates), 1), w_hh.chunk(len(layer.cell.gates), 1), strict=True):
        rows.unflatten(1, (layer.heads, -1)).transpose(0, 1).baddbmm_(hs, w.transpose(1, 2))


def _recurrent_weights(layer: Layer, direction: int, dgates: Tensor, ys: Tensor) -> Tensor:
    """d w_hh (N, G·D, D) of one direction from its dgates (T, B, W·H), in the storage dtype."""
    rows = dgates.flatten(0, 1)
    dgh = rows if layer.cell.adds_pre_activations else rows[:, layer.hidden_size :]
    total = dgates.new_empty(layer.w_hh[direction].shape)
    for index, (part, h) in enumerate(entering(layer, direction, ys)):
        add_products(layer, total, dgh[part], h.to(dgates.dtype), keep=index > 0)
    return total.to(layer.x.dtype)


def _bias_gradients(layer: Layer, rows: Tensor) -> list[Tensor]:
    """Those of b_ih and b_hh of one direction, from its dgates (T·B, W·H)."""
    hidden, sums = layer.hidden_size, _sum_rows(rows, layer.state_dtype).to(layer.x.dtype)
    if layer.cell.adds_pre_activations:
        return [sums, sums.clone()]
    return [sums[:-hidden].roll(-hidden), sums[hidden:].clone()]


def _sum_rows(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of all rows, added up in `dtype`, by parts of `SUMMANDS` rows, those by parts again, and so on."""
    while len(rows) > SUMMANDS:
        parts = len(rows) // SUMMANDS
        whole, rest = rows.tensor_split([parts * SUMMANDS])
        rows = whole.unflatten(0, (parts, SUMMANDS)).sum(1, dtype=dtype)
        if len(rest) > 0:
            rows[-1] += rest.sum(0, dtype=dtype)
    return rows.sum(0, dtype=dtype)
