"""A layer's forward without lengths and resets, prepared once for many calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.backends.numba import launch, layer_forward, unpacked
from fastrnn.backends.numba.arguments import ForwardArrays
from fastrnn.backends.numba.forward_plan import plan
from fastrnn.cells import CELLS


class Sizes(NamedTuple):
    """Of the input: numbers of steps and rows, and the distances between them in elements."""

    steps: int
    batch: int
    x_step: int
    x_row: int


class Launch(NamedTuple):
    """As `unpacked.Launch`, with weights that are laid out in every call: their values may have changed."""

    prepared: layer_forward.Prepared
    sizes: Sizes
    directions: int
    output_bytes: int
    """of one direction's part of a row of the output"""
    state_bytes: int
    """of a state of one direction"""
    saved_bytes: int
    """of what one direction saves"""

    def run(
        self, x: int, h0: int, c0: int, ys: int, h_last: int, c_last: int, history: int = 0, saved: int = 0
    ) -> None:
        """Computes everything, with these addresses. Several threads may do so at the same time.

        What backward needs is kept at `history` (T, B, directions·H), every c, and `saved` (directions, T, B, S·H).
        """
        arrays = []
        for direction in range(self.directions):
            state = direction * self.state_bytes
            arrays.append(
                ForwardArrays(
                    lengths=0,
                    resets=0,
                    x=x,
                    x_step=self.sizes.x_step,
                    x_row=self.sizes.x_row,
                    h0=h0 + state,
                    c0=c0 + state,
                    ys=ys + direction * self.output_bytes,
                    history=history and history + direction * self.output_bytes,
                    saved=saved and saved + direction * self.saved_bytes,
                    h_last=h_last + state,
                    c_last=c_last + state,
                )
            )
        self.prepared.run(arrays)


def prepare(cell: str, sizes: Sizes, weights: Sequence[Sequence[Tensor]]) -> Launch:
    """A layer's forward with these weights: for each direction (G·H, I), (G·H, H), and two (G·H,) or none; contiguous.

    `run` of what is returned takes the addresses of x (T, B, I), whose rows are dense, of the states (directions, B, H)
    before the first step, and of where the output (T, B, directions·H) and the states after the last step are to be
    written. Those of h and of c are the same where the cell has no c.
    """
    w_ih, w_hh = [w[0] for w in weights], [w[1] for w in weights]
    biases = [bias for w in weights for bias in w[2:]]
    inputs, hidden, directions, dtype = w_ih[0].shape[1], w_hh[0].shape[1], len(weights), w_ih[0].dtype
    steps, batch = sizes[:2]
    available = launch.available_threads()
    laid_out = plan(cell, dtype, (steps, batch, inputs), hidden, hidden, directions, False, False, available)
    row_bytes = hidden * torch.finfo(dtype).bits // 8
    prepared = layer_forward.prepare(laid_out, w_ih, w_hh, biases, [])
    saved_bytes = steps * batch * len(CELLS[cell].saved) * row_bytes
    return Launch(prepared, sizes, directions, row_bytes, batch * row_bytes, saved_bytes)


def prepare_inference(
    cell: str, sizes: Sizes, weights: Sequence[Sequence[Tensor]], *, keep_weights: bool = False
) -> unpacked.Launch | Launch:
    """As `prepare`, for calls of which nothing is kept but the output and the final states.

    With `keep_weights` the weights' values may be those of now.
    """
    steps, batch, x_step, x_row = sizes
    inputs, hidden = weights[0][0].shape[1], weights[0][1].shape[1]
    dense = (steps == 1 or x_step == batch * inputs) and (batch == 1 or x_row == inputs)
    pays = steps * batch <= unpacked.KEPT_ROWS if keep_weights else unpacked.pays(steps, batch, hidden)
    if len(weights) > 1 or not dense or not pays:
        made = prepare(cell, sizes, weights)
        if keep_weights:
            made.prepared.keep_weights()
        return made
    dtype, available = weights[0][0].dtype, launch.available_threads()
    found = unpacked.plan(cell, dtype, steps, batch, inputs, hidden, False, available)
    w_ih, w_hh, *biases = weights[0]
    return unpacked.prepare(found, w_ih, w_hh, biases)
