"""The backward of a layer: the recurrence, then the products over all T·B rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastrnn.backends import gate_gradients, products
from fastrnn.backends.layer import Backward, Gradients, Layer, Residuals
from fastrnn.backends.recurrence.buffers import BackwardBuffers, Masks, dense, empty_dgates, on

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
    d_states0: list[Tensor],
) -> BackwardBuffers:
    storage, state = layer.x.dtype, layer.state_dtype
    dys, dcs = (*grads.states, None)[:2]
    recomputes = bool(layer.cell.saved) and not kept.gates
    gates = None
    if layer.cell.saved:
        gates = _preactivations(layer, kept.states[0]) if recomputes else dense(kept.gates[0])
    return BackwardBuffers(
        layer=layer,
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
        d_states0=d_states0,
    )


def _preactivations(layer: Layer, ys: Tensor) -> Tensor:
    """(directions, T, B, S·H) in the storage dtype: what the activations apply to, in the order of `Cell.saved`.

    Every state that entered a step is known, so that two products over all T·B rows give all of them. Both are added up
    where they belong, without room for either alone.
    """
    hidden, (T, B, _) = layer.hidden_size, layer.x.shape
    width = len(layer.cell.saved) * hidden
    pre = layer.x.new_empty((layer.directions, T, B, width))
    x = products.masked_x(layer).reshape(T * B, -1)
    for direction, w in enumerate(layer.w_ih):
        rows = pre[direction].view(T * B, width)
        biases = layer.biases[2 * direction : 2 * direction + 2]
        both = biases[0] + biases[1] if biases else None
        if layer.cell.adds_pre_activations:
            _put_product(rows, x, w, both)
            continue
        # The last gate's shares stay apart: gx first, gh last.
        _put_product(rows[:, :hidden], x, w[-hidden:], biases[0][-hidden:] if biases else None)
        _put_product(rows[:, hidden:-hidden], x, w[:-hidden], both if both is None else both[:-hidden])
        rows[:, -hidden:] = biases[1][-hidden:] if biases else 0
    del x  # a copy where there are lengths: gone before h needs one
    for direction in range(layer.directions):
        gh = pre[direction].view(T * B, width)[:, 0 if layer.cell.adds_pre_activations else hidden :]
        for part, h in gate_gradients.entering(layer, direction, ys):
            gate_gradients.add_hidden_product(layer, direction, gh[part], h)
    return pre


def _put_product(out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None) -> None:
    """x wᵀ + bias, in `out`."""
    if bias is None:
        torch.mm(x, w.T, out=out)
    else:
        torch.addmm(bias, x, w.T, out=out)
