"""The forward of a layer: the input's product over all T·B rows, then the recurrence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastrnn.backends.layer import Forward, Layer
from fastrnn.backends.recurrence.buffers import ForwardBuffers, Masks, dense, dense_or_none, on, parameters_of

Recurrence = Callable[[Layer, ForwardBuffers], None]
"""Fills histories, gates and finals; T and B are at least 1."""


def forward(layer: Layer, run: Recurrence, *, history: bool, gates: bool) -> Forward:
    """One layer's outputs; see `Forward`."""
    with on(layer.x.device):
        return _forward(layer, run, history, gates)


def _forward(layer: Layer, run: Recurrence, history: bool, gates: bool) -> Forward:
    x, directions, hidden = layer.x, layer.directions, layer.hidden_size
    T, B, _ = x.shape
    saves = len(layer.cell.saved)
    histories = [x.new_empty(shape, dtype=dtype) for shape, dtype in layer.history_forms[: None if history else 1]]
    saved = x.new_empty((directions, T, B, saves * hidden), dtype=layer.gate_dtype) if gates and saves else None
    if T == 0 or B == 0:
        finals = [state.clone(memory_format=torch.contiguous_format) for state in layer.states0]
    else:
        finals = [x.new_empty(state.shape) for state in layer.states0]
        buffers = ForwardBuffers(
            gx=_input_products(layer),
            w_hh=[dense(w) for w in layer.w_hh],
            b_hh=[dense(b) for b in layer.biases[1::2]] if layer.cell.u_gates and not layer.cell.adds_shares else [],
            states0=[dense(state) for state in layer.states0],
            parameters=parameters_of(layer),
            inputs=[dense(value) for value in layer.inputs],
            masks=Masks.of(layer),
            recurrent_mask=dense_or_none(layer.recurrent_mask),
            histories=histories,
            gates=saved,
            finals=finals,
        )
        run(layer, buffers)
    return Forward(histories, finals, [] if saved is None else [saved])


def _input_products(layer: Layer) -> Tensor:
    """gx (directions, T, B, Gx·H): with both biases where the cell adds nothing else between them.

    What x holds at t >= length may be NaN, and so is gx there: the kernels select.
    """
    T, B, inputs = layer.x.shape
    gx = layer.x.new_empty((layer.directions, T, B, layer.w_ih[0].shape[0]))
    rows = layer.x.reshape(T * B, inputs)
    for direction, w in enumerate(layer.w_ih):
        out = gx[direction].view(T * B, -1)
        if layer.biases:
            b_ih, b_hh = layer.biases[2 * direction : 2 * direction + 2]
            bias = b_ih + b_hh if layer.cell.adds_shares else b_ih
            torch.addmm(bias, rows, w.T, out=out)
        else:
            torch.mm(rows, w.T, out=out)
    return gx
