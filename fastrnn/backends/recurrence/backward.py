"""The backward of a layer: the recurrence, then the products over all T·B rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastrnn.backends import gate_gradients, outside, products
from fastrnn.backends.layer import Backward, Gradients, Layer, Residuals
from fastrnn.backends.recurrence.buffers import (
    BackwardBuffers,
    Masks,
    dense,
    dense_or_none,
    empty_dgates,
    on,
    parameters_of,
)

Recurrence = Callable[[Layer, BackwardBuffers], None]
"""Fills dgates and d_states0; T and B are at least 1."""


def backward(layer: Layer, run: Recurrence, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients; see `Backward`."""
    with on(layer.x.device), torch.no_grad():  # sums and products are made in place
        return _backward(layer, run, kept, grads)


def _backward(layer: Layer, run: Recurrence, kept: Residuals, grads: Gradients) -> Backward:
    T, B, _ = layer.x.shape
    d_finals = _filled(grads.finals, layer.states0)
    if T == 0 or B == 0:
        zeros = [torch.zeros_like(state, memory_format=torch.contiguous_format) for state in layer.states0]
        d_states0 = [d.clone(memory_format=torch.contiguous_format) for d in d_finals] or zeros
        dgates = empty_dgates(layer)
    else:
        d_states0 = [layer.x.new_empty(state.shape) for state in layer.states0]
        buffers = _buffers(layer, kept, grads, d_finals, d_states0)
        run(layer, buffers)
        dgates = buffers.dgates
        del buffers  # and with it what only the recurrence needed
    weights: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    if grads.need_weights:
        weights = gate_gradients.weight_gradients(layer, dgates, kept.states[0])
    # Last: where there are masks, the weights' gradients take as much for a time.
    dx = [gate_gradients.input_gradient(layer, dgates)] if grads.need_x else []
    saved = kept.gates[0] if kept.gates else None
    of_cell = outside.of_layer(layer, dgates, saved, kept.states, grads)
    return Backward(dx, *weights, [], d_states0, *of_cell)


def _filled(d_finals: list[Tensor | None], states0: list[Tensor]) -> list[Tensor]:
    """Zeros in place of None, or nothing where all are None."""
    if all(d is None for d in d_finals):
        return []
    return [torch.zeros_like(state) if d is None else d for d, state in zip(d_finals, states0, strict=True)]


def _buffers(
    layer: Layer,
    kept: Residuals,
    grads: Gradients,
    d_finals: list[Tensor],
    d_states0: list[Tensor],
) -> BackwardBuffers:
    storage = layer.x.dtype
    dtypes = [storage, *[layer.state_dtype] * (len(layer.states0) - 1)]
    d_histories = [*grads.states, *[None] * (len(dtypes) - len(grads.states))]
    recomputes = bool(layer.cell.saved) and not kept.gates
    gates = None
    if layer.cell.saved:
        gates = _preactivations(layer, kept.states[0]) if recomputes else dense(kept.gates[0])
    return BackwardBuffers(
        layer=layer,
        w_hh=[dense(w) for w in layer.w_hh],
        histories=[dense(history, dtype) for history, dtype in zip(kept.states, dtypes, strict=True)],
        gates=gates,
        are_preactivations=recomputes,
        states0=[dense(s) for s in layer.states0],
        parameters=parameters_of(layer),
        inputs=[dense(value) for value in layer.inputs],
        masks=Masks.of(layer),
        recurrent_mask=dense_or_none(layer.recurrent_mask),
        d_histories=[None if d is None else dense(d, dtype) for d, dtype in zip(d_histories, dtypes, strict=True)],
        d_finals=[dense(d, storage) for d in d_finals],
        d_states0=d_states0,
    )


def _preactivations(layer: Layer, ys: Tensor) -> Tensor:
    """(directions, T, B, W·H) in the storage dtype: what the step applies to, in the gates' blocks.

    Every state that entered a step is known, so that products over all T·B rows give all of them. Both are added up
    where they belong, without room for either alone.
    """
    cell, hidden = layer.cell, layer.hidden_size
    pre, only_u = empty_dgates(layer), slice(len(cell.x_gates) * hidden, gate_gradients.gate_blocks(cell) * hidden)
    x = products.masked_x(layer).flatten(0, 1)
    for direction, w in enumerate(layer.w_ih):
        rows, bias = pre[direction].flatten(0, 1), _bias(layer, direction)
        for blocks, gates in gate_gradients.columns(layer, cell.x_runs):
            _put_product(rows[:, blocks], x, w[gates], None if bias is None else bias[blocks])
        rows[:, only_u] = 0 if bias is None else bias[only_u]
    del x  # a copy where there are lengths: gone before h needs one
    for direction in range(layer.directions if cell.u_gates else 0):
        rows = pre[direction].flatten(0, 1)
        for part, h in gate_gradients.entering(layer, direction, ys):
            gate_gradients.add_hidden_product(layer, direction, rows[part], h)
    return pre


def _bias(layer: Layer, direction: int) -> Tensor | None:
    """What one direction's biases add to the pre-activations, (H,) for each of them; None where there are none."""
    if not layer.biases:
        return None
    b_ih, b_hh = layer.biases[2 * direction : 2 * direction + 2]
    if layer.cell.adds_shares:
        return b_ih + b_hh
    bias = b_ih.new_zeros(gate_gradients.gate_blocks(layer.cell) * layer.hidden_size)
    for share, runs in ((b_ih, layer.cell.x_runs), (b_hh, layer.cell.u_runs)):
        for blocks, gates in gate_gradients.columns(layer, runs):
            bias[blocks] += share[gates]
    return bias


def _put_product(out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None) -> None:
    """x wᵀ + bias, in `out`."""
    if bias is None:
        torch.mm(x, w.T, out=out)
    else:
        torch.addmm(bias, x, w.T, out=out)
