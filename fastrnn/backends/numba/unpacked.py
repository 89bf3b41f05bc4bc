"""Few rows and steps, nothing kept: a launch of the kernel that reads the weights where torch keeps them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.backends.addresses import address
from fastrnn.backends.layer import Forward, Layer
from fastrnn.backends.numba import launch
from fastrnn.backends.numba.arguments import FIELDS, UnpackedAddresses, UnpackedShape
from fastrnn.backends.numba.compile import kernel
from fastrnn.backends.numba.geometry import divide_up
from fastrnn.backends.numba.other_states import of_steps
from fastrnn.backends.numba.sharing import SECONDS_PER_PRODUCT, Pace
from fastrnn.backends.numba.tensors import side_by_side
from fastrnn.cells.known import KNOWN

TEAM_PRODUCTS = 400_000
"""Multiplications of a step: below this, waking a second thread costs more than sharing the step saves."""
RANGES = ((4, 2**62, 32), (8, 2**62, 8), (16, 256, 16))
"""Up to so many steps, hidden units, and rows of all steps together. There it took 0.3 to 0.9 of the time of laying out
the weights, up to 1.1 at the edges, for 64 to 1024 units on 2 cores with AVX-512; at twice as many rows up to 1.6."""
KEPT_ROWS = 2
"""Up to so many rows of all steps together it is faster than weights that were laid out before the call."""
NARROW = 64
"""Bytes of the widest vector: it holds units of one head only, so that heads of fewer are left to packed weights."""
DTYPES = (torch.float32, torch.float64)
SCHEDULES = 512
"""How many are kept."""
_COUNTER = FIELDS["unpacked"].index("counter")
_X, _H0, _C0, _YS, _H, _C, _INPUTS = (
    launch.HEADER + FIELDS["unpacked"].index(name)
    for name in ("x", "h0", "c0", "ys", "h_last", "c_last", "step_inputs")
)
"""Where in a launch's memory."""


class Schedule(NamedTuple):
    """What depends on sizes only."""

    kernel: int
    threads: int
    shape: UnpackedShape
    pace: Pace


class UnpackedLaunch(NamedTuple):
    """A launch but for the addresses of what changes from call to call."""

    schedule: Schedule
    memory: array[int]
    parameters: array[int]
    """the addresses of the cell's"""

    def run(
        self, x: int, x_step: int, x_row: int, h0: int, c0: int, ys: int, h_last: int, c_last: int, inputs: int = 0
    ) -> None:
        """Starts the kernel with these addresses, as `ForwardLaunch.run`; x is dense, so that its steps and rows are
        known. Several threads may do so at the same time."""
        memory = self.memory[:]
        memory[_X], memory[_H0], memory[_C0] = x, h0, c0
        memory[_YS], memory[_H], memory[_C] = ys, h_last, c_last
        memory[_INPUTS] = inputs
        launch.start(self.schedule.kernel, self.schedule.threads, memory, _COUNTER, self.schedule.pace)


@lru_cache(SCHEDULES)
def schedule(
    cell: str,
    dtype: torch.dtype,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    head: int,
    reverse: bool,
    available: int,
) -> Schedule:
    """For x (steps, batch, inputs) and heads of `head` units, with up to `available` threads."""
    compiled = kernel(cell, "unpacked", dtype)
    products = batch * hidden * (len(KNOWN[cell].x_gates) * inputs + len(KNOWN[cell].u_gates) * head)
    blocks = hidden // head * divide_up(head, compiled.geometry.lanes)
    team = min(available, blocks) if products >= TEAM_PRODUCTS else 1
    shape = UnpackedShape(
        steps=steps,
        batch=batch,
        inputs=inputs,
        hidden=hidden,
        head=head,
        reverse=int(reverse),
        team=team,
        **launch.team_functions(),
    )
    kind = ("unpacked", cell, dtype, batch, inputs, hidden, head)
    pace = Pace(kind, steps, steps * products * SECONDS_PER_PRODUCT, team, steps > 1)
    return Schedule(compiled.address, team, shape, pace)


def unpacked_launch(
    cell: str,
    x_shape: tuple[int, ...],
    w_ih: Tensor,
    w_hh: Tensor,
    biases: Sequence[Tensor],
    parameters: Sequence[Tensor] = (),
    reverse: bool = False,
) -> UnpackedLaunch:
    """A launch with these weights, which the caller keeps: (Gx·H, I), (N·Gu·D, D), (Gx·H,) and (Gu·H,) or none, and the
    cell's parameters, (H,) each; contiguous."""
    hidden, head = w_ih.shape[0] // len(KNOWN[cell].x_gates), w_hh.shape[-1]
    steps, batch, inputs = x_shape
    cut = schedule(cell, w_ih.dtype, steps, batch, inputs, hidden, head, reverse, launch.available_threads())
    b_ih, b_hh = biases or (None, None)
    table = array("q", map(address, parameters))
    addresses = UnpackedAddresses(
        counter=0,
        x=0,
        h0=0,
        c0=0,
        w_ih=address(w_ih),
        w_hh=address(w_hh),
        bias_ih=address(b_ih),
        bias_hh=address(b_hh),
        parameters=table.buffer_info()[0],
        step_inputs=0,
        ys=0,
        h_last=0,
        c_last=0,
    )
    memory = launch.no_blocks()
    memory.extend((*cut.shape, *addresses))
    return UnpackedLaunch(cut, memory, table)


def holds(w_hh: Tensor) -> bool:
    """Whether w_hh (..., D) is of a single head, or of heads that fill a vector."""
    return w_hh.dim() < 3 or w_hh.shape[0] == 1 or w_hh.shape[-1] * w_hh.itemsize >= NARROW


def pays(steps: int, batch: int, hidden: int) -> bool:
    """Whether this is faster than laying out the weights."""
    return steps * batch > 0 and any(
        steps <= most_steps and hidden <= most_hidden and steps * batch <= most_rows
        for most_steps, most_hidden, most_rows in RANGES
    )


def serves(layer: Layer) -> bool:
    """Whether the kernel can compute a layer's output and final states, and is faster than the one that lays out."""
    steps, batch, _ = layer.x.shape
    return (
        layer.x.dtype in DTYPES
        and layer.directions == 1
        and not layer.projected
        and not layer.cell.over_units
        and holds(layer.w_hh[0])
        and layer.lengths is None
        and layer.resets is None
        and layer.recurrent_mask is None
        and pays(steps, batch, layer.hidden_size)
    )


def forward(layer: Layer) -> Forward:
    """The output and the final states of a layer that `serves` approves."""
    x = layer.x.contiguous()
    w_ih, w_hh = layer.w_ih[0].contiguous(), layer.w_hh[0].contiguous()
    biases, parameters = ([tensor.contiguous() for tensor in group] for group in (layer.biases, layer.parameters))
    states0 = [state.contiguous() for state in layer.states0]
    inputs = side_by_side(layer.inputs)
    ys = x.new_empty((*x.shape[:2], layer.hidden_size))
    last = [torch.empty_like(state) for state in states0]
    (c0, c_last), _kept = of_steps(states0, last)
    bound = unpacked_launch(layer.cell_name, tuple(x.shape), w_ih, w_hh, biases, parameters, layer.reverse)
    strides = x.stride(0), x.stride(1)
    bound.run(address(x), *strides, address(states0[0]), c0, address(ys), address(last[0]), c_last, address(inputs))
    return Forward([ys], last, [])
