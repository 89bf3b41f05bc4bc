"""The backward of a layer: the recurrence, then the products over all T·B rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastrnn.backends import gate_gradients, products
from fastrnn.backends.layer import Backward, Gradients, Layer, Residuals
from fastrnn.backends.recurrence.buffers import BackwardBuffers, Masks, dense, on

Recurrence = Callable[[Layer, BackwardBuffers], None]
"""Fills dgates and d_states0; T and B are at least 1."""


def backward(layer: Layer, run: Recurrence, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients; see `Backward`."""
    with on(layer.x.device):
        return _backward(layer, run, kept, grads)


def _backward(layer: Layer, run: Recurrence, kept: Residuals, grads: Gradients) -> Backward:
    x, directions, hidden = layer.x, layer.directions, layer.hidden_size
    T, B, _ = x.shape
    width = max(len(layer.cell.saved), len(layer.cell.gates))
    dgates = x.new_empty((directions, T, B, width * hidden))
    d_finals = _filled(grads.finals, layer.states0)
    if T == 0 or B == 0:
        zeros = [torch.zeros_like(state, memory_format=torch.contiguous_format) for state in layer.states0]
        d_states0 = [d.clone(memory_format=torch.contiguous_format) for d in d_finals] or zeros
    else:
        d_states0 = [x.new_empty(state.shape) for state in layer.states0]
        run(layer, _buffers(layer, kept, grads, d_finals, dgates, d_states0))
    dx = [gate_gradients.input_gradient(layer, dgates)] if grads.need_x else []
    weights: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    if grads.need_weights:
        weights = gate_gradients.weight_gradients(layer, dgates, kept.states[0])
    return Backward(dx, *weights, [], d_states0)


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
    dgates: Tensor,
    d_states0: list[Tensor],
) -> BackwardBuffers:
    storage, state = layer.x.dtype, layer.state_dtype
    dys, dcs = (*grads.states, None)[:2]
    recomputes = bool(layer.cell.saved) and not kept.gates
    gates = None
    if layer.cell.saved:
        gates = _preactivations(layer, kept.states[0]) if recomputes else dense(kept.gates[0])
    return BackwardBuffers(
        w_hh=[dense(w) for w in layer.w_hh],
        ys=dense(kept.states[0], storage),
        cs=dense(kept.states[1], state) if len(kept.states) > 1 else None,
        gates=gates,
        are_preactivations=recomputes,
        states0=[dense(s) for s in layer.states0],
        masks=Masks.of(layer),
        dys=None if dys is None else dense(dys, storage),
        dcs=None if dcs is None else dense(dcs, state),
        d_finals=[dense(d, storage) for d in d_finals],
        dgates=dgates,
        d_states0=d_states0,
    )


def _preactivations(layer: Layer, ys: Tensor) -> Tensor:
    """(directions, T, B, S·H) in the storage dtype: what the activations apply to, in the order of `Cell.saved`.

    Every state that entered a step is known, so that two products over all T·B rows give all of them.
    """
    T, B, _ = layer.x.shape
    hidden = layer.hidden_size
    x = products.masked_x(layer).reshape(T * B, -1)
    pre = layer.x.new_empty((layer.directions, T, B, len(layer.cell.saved) * hidden))
    for direction in range(layer.directions):
        history = products.direction_slice(layer, direction, ys)
        h = products.state_before(layer, direction, history, layer.states0[0][direction]).reshape(T * B, hidden)
        w_ih, biases = layer.w_ih[direction], layer.biases[2 * direction : 2 * direction + 2]
        gh = products.hidden_product(layer, direction, h).flatten(1)
        rows = pre[direction].view(T * B, -1)
        if layer.cell.adds_pre_activations:
            torch.addmm(gh, x, w_ih.T, out=rows)
            if biases:
                rows += biases[0]
        else:
            gx = torch.nn.functional.linear(x, w_ih, biases[0] if biases else None)
            rows[:, :hidden] = gx[:, -hidden:]
            torch.add(gx[:, :-hidden], gh[:, :-hidden], out=rows[:, hidden:-hidden])
            rows[:, -hidden:] = gh[:, -hidden:]
    return pre
