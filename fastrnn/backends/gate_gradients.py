"""What follows a backward recurrence: the gradients of x and of the weights, by products over all T·B rows at once.

Backends hand gradients over as `dgates` (directions, T, B, W·H), the W blocks of `Cell.blocks` side by side and zero
at t >= length. Products go by runs of blocks that meet a run of a weight's rows: `Cell.x_runs` and `Cell.u_runs`. They
are computed in the dtype of `dgates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastrnn.backends import products
from fastrnn.backends.layer import Layer
from fastrnn.cells.contract import Cell, Run

SUMMANDS = 128
"""Rows that are summed at a time. From 256 values a thread on, torch's kernel for GPUs has blocks share a sum, and it
takes 128 times the memory that their shares fill: 128 MiB for 16384 rows of 1024 columns, 32 MiB themselves."""


def gate_blocks(cell: Cell) -> int:
    """How many of a cell's blocks are gates': the first ones."""
    return len({*cell.dgx, *cell.dgh})


def columns(layer: Layer, runs: Sequence[Run]) -> Iterator[tuple[slice, slice]]:
    """Of each run, which columns of (rows, W·H) and which rows of a weight (G·H, ...) it is."""
    for run in runs:
        yield run.columns(layer.hidden_size), run.rows(layer.hidden_size)


def input_gradient(layer: Layer, dgates: Tensor) -> Tensor:
    """dx (T, B, I), of all directions together, in the storage dtype."""
    of_x = len(layer.cell.x_gates) * layer.hidden_size
    total: Tensor | None = None
    for direction in range(layer.directions):
        w = layer.w_ih[direction].to(dgates.dtype)
        parts = [w[gates] for _, gates in columns(layer, layer.cell.x_runs)]
        # A copy where there are several: two products would add up in the storage dtype.
        rows, w = dgates[direction].flatten(0, 1)[:, :of_x], parts[0] if len(parts) == 1 else torch.cat(parts)
        total = rows @ w if total is None else total.addmm_(rows, w)
    assert total is not None
    return total.view(layer.x.shape).to(layer.x.dtype)


def weight_gradients(layer: Layer, dgates: Tensor, ys: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """d w_ih, d w_hh and the biases' gradients, as in `Backward`; ys is (T, B, directions·P or directions·H)."""
    d_w_ih, d_biases = [], []
    x = products.masked_x(layer).to(dgates.dtype).flatten(0, 1)
    for direction in range(layer.directions):
        rows = dgates[direction].flatten(0, 1)
        total = x.new_empty(layer.w_ih[direction].shape)
        for blocks, gates in columns(layer, layer.cell.x_runs):
            torch.mm(rows[:, blocks].T, x, out=total[gates])
        d_w_ih.append(total.to(layer.x.dtype))
        if layer.biases:
            d_biases += _bias_gradients(layer, rows)
    del x  # a copy where there are lengths: gone before h needs one
    d_w_hh = [_recurrent_weights(layer, direction, dgates[direction], ys) for direction in range(layer.directions)]
    return d_w_ih, d_w_hh, d_biases


def entering(layer: Layer, direction: int, ys: Tensor) -> list[tuple[slice, Tensor]]:
    """What h (rows, P or H) enters which of a direction's T·B rows' products, all of them together.

    Without masks these are two views, of ys and of the initial state. Else they are one copy, which is masked in place:
    zero after a cut and at t >= length, and with recurrent dropout what is `multiplied`.
    """
    history, state0 = products.direction_slice(layer, direction, ys), layer.states0[0][direction]
    backwards = layer.reversed(direction)
    T, B, _ = history.shape
    if layer.lengths is None and layer.resets is None and layer.recurrent_mask is None and T > 0:
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
    if layer.recurrent_mask is not None:
        before.mul_(layer.recurrent_mask[direction].to(before.dtype))
    return [(slice(None), before.flatten(0, 1))]


def add_products(layer: Layer, total: Tensor, left: Tensor, right: Tensor, keep: bool = True) -> None:
    """Adds each head's dghᵀ right to `total` (N, Gu·D, P or D), or with `keep` false puts it there.

    `left` is (rows, W·H), block by block, `right` (rows, P or H). Heads are strided views: a product of all at once
    would need a copy of `left`.
    """
    if layer.heads == 1:
        for blocks, gates in columns(layer, layer.cell.u_runs):
            total[0, gates].addmm_(left[:, blocks].T, right, beta=int(keep))
        return
    rights = _by_head(layer, right)
    for block, rows in zip(layer.cell.dgh, _gates_of_heads(layer, total), strict=True):
        lefts = _by_head(layer, left.unflatten(1, (-1, layer.hidden_size))[:, block])
        rows.baddbmm_(lefts.transpose(1, 2), rights, beta=int(keep))


def add_hidden_product(layer: Layer, direction: int, blocks: Tensor, h: Tensor) -> None:
    """Adds h (rows, P or H) times one direction's recurrent weights, without their bias, to gh's of `blocks`
    (rows, W·H)."""
    w_hh = layer.w_hh[direction]
    if layer.heads == 1:
        for of_blocks, gates in columns(layer, layer.cell.u_runs):
            blocks[:, of_blocks].addmm_(h, w_hh[0, gates].T)
        return
    hs = _by_head(layer, h)
    for block, w in zip(layer.cell.dgh, _gates_of_heads(layer, w_hh), strict=True):
        _by_head(layer, blocks.unflatten(1, (-1, layer.hidden_size))[:, block]).baddbmm_(hs, w.transpose(1, 2))


def _by_head(layer: Layer, rows: Tensor) -> Tensor:
    """A view (N, rows, D) of (rows, H)."""
    return torch.unflatten(rows, 1, (layer.heads, -1)).transpose(0, 1)


def _gates_of_heads(layer: Layer, w_hh: Tensor) -> Sequence[Tensor]:
    """Views (N, D, P or D) of w_hh (N, Gu·D, P or D), or of its gradient, one for each gate."""
    return w_hh.unflatten(1, (len(layer.cell.u_gates), -1)).unbind(1) if layer.cell.u_gates else ()


def _recurrent_weights(layer: Layer, direction: int, dgates: Tensor, ys: Tensor) -> Tensor:
    """d w_hh (N, Gu·D, D) of one direction from its dgates (T, B, W·H), in the storage dtype."""
    rows = dgates.flatten(0, 1)
    total = dgates.new_empty(layer.w_hh[direction].shape)
    if not layer.cell.u_gates:
        return total.to(layer.x.dtype)
    for index, (part, h) in enumerate(entering(layer, direction, ys)):
        add_products(layer, total, rows[part], h.to(dgates.dtype), keep=index > 0)
    return total.to(layer.x.dtype)


def _bias_gradients(layer: Layer, rows: Tensor) -> list[Tensor]:
    """Those of b_ih and b_hh of one direction, from its dgates (T·B, W·H)."""
    cell, blocks = layer.cell, gate_blocks(layer.cell)
    sums = _sum_rows(rows[:, : blocks * layer.hidden_size], layer.state_dtype).to(layer.x.dtype)
    if cell.adds_shares:
        return [sums, sums.clone()]
    of_blocks = sums.unflatten(0, (blocks, -1))
    return [cell.of_gates(of_blocks, places).clone().flatten() for places in (cell.dgx, cell.dgh)]


def _sum_rows(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of all rows, added up in `dtype`, by parts of `SUMMANDS` rows, those by parts again, and so on."""
    while len(rows) > SUMMANDS:
        parts = len(rows) // SUMMANDS
        whole, rest = rows.tensor_split([parts * SUMMANDS])
        rows = whole.unflatten(0, (parts, SUMMANDS)).sum(1, dtype=dtype)
        if len(rest) > 0:
            rows[-1] += rest.sum(0, dtype=dtype)
    return rows.sum(0, dtype=dtype)
