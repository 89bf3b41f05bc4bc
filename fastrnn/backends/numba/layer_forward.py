"""The forward of a layer: memory, packed weights, and one launch or two."""

from __future__ import annotations

from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.backends.addresses import address
from fastrnn.backends.layer import Forward, Layer, as_gates
from fastrnn.backends.numba import launch, unpacked, workspace
from fastrnn.backends.numba.arguments import FIELDS, ForwardAddresses, ForwardArrays, ForwardShape
from fastrnn.backends.numba.forward_plan import Plan, plan
from fastrnn.backends.numba.packing import Packed
from fastrnn.backends.numba.sharing import Pace
from fastrnn.backends.numba.tensors import cast, dense, dense_rows, direction_address, masks

_COUNTER = FIELDS["forward"].index("counter")
_ADDRESSES = launch.HEADER + len(ForwardShape._fields)
"""Where in a launch's memory they begin."""


class Prepared(NamedTuple):
    """A layer's forward but for the arrays, which change from call to call."""

    plan: Plan
    packed: Packed
    launches: list[tuple[int, array[int], Pace]]
    """how many threads, a launch's memory with the shape of each direction, and how long it took"""
    kept: list[Tensor]
    """one piece of memory at most, in which the weights are laid out already, but for the time that a call uses it"""

    def keep_weights(self) -> None:
        """Lays the weights out once for all calls; one at the same time as another lays them out for itself."""
        memory = torch.empty(self.plan.memory, dtype=torch.uint8)
        self.packed.run(memory.data_ptr())
        self.kept.append(memory)

    def run(self, arrays: list[ForwardArrays]) -> None:
        """Computes everything, with the arrays of each direction. Several threads may do so at the same time."""
        try:
            memory = self.kept.pop()
        except IndexError:
            memory = workspace.take(self.plan.memory)
            self.packed.run(memory.data_ptr())
            self._launch(memory.data_ptr(), arrays)
            workspace.give_back(memory)
        else:
            self._launch(memory.data_ptr(), arrays)
            self.kept.append(memory)

    def _launch(self, place: int, arrays: list[ForwardArrays]) -> None:
        for threads, shapes, pace in self.launches:
            blocks = shapes[:]
            for direction, each in enumerate(arrays):
                first = _ADDRESSES + direction * len(FIELDS["forward"])
                values = array("q", (*ForwardAddresses(counter=0, memory=place), *each))
                blocks[first : first + len(values)] = values
            launch.start(self.plan.kernel, threads, blocks, _COUNTER, pace)


def prepare(made: Plan, w_ih: list[Tensor], w_hh: list[Tensor], biases: list[Tensor], extras: list[Tensor]) -> Prepared:
    """A forward with these weights, in the state dtype: for each direction (G·H, I), (G·H, H or P), then its two
    (G·H,), if any, and its (P, H), if any."""
    no_bias = None if biases else torch.zeros((w_ih[0].shape[0], 1), dtype=w_ih[0].dtype)
    sources = []
    for direction in range(len(w_ih)):
        b_ih, b_hh = (
            (no_bias, no_bias)
            if no_bias is not None
            # Detached: a view would hold on to the parameter, which torch then refuses to exchange for another.
            else (b.detach()[:, None] for b in biases[2 * direction : 2 * direction + 2])
        )
        sources += [w_ih[direction], b_ih, w_hh[direction], b_hh, *extras[direction : direction + 1]]
    launches = []
    for threads, shapes, pace in made.launches:
        blocks = launch.no_blocks()
        for shape in shapes:
            blocks.extend((*shape, *[0] * (len(FIELDS["forward"]) - len(shape))))
        launches.append((threads, blocks, pace))
    return Prepared(made, made.packing.prepare(sources), launches, [])


def forward(layer: Layer, *, history: bool, gates: bool) -> Forward:
    """One layer's outputs; see `Forward`."""
    if not history and not gates and unpacked.serves(layer):
        return unpacked.forward(layer)
    dtype, storage, directions = layer.state_dtype, layer.x.dtype, layer.directions
    steps, batch, _ = layer.x.shape
    hidden, saves = layer.hidden_size, len(layer.cell.saved)
    has_c = len(layer.states0) > 1
    ys = workspace.empty((steps, batch, directions * layer.output_size), dtype)
    c_history = workspace.empty((steps, batch, directions * hidden), dtype) if history and has_c else None
    saved = workspace.empty((directions, steps, batch, saves * hidden), dtype) if gates and saves else None
    if batch == 0 or steps == 0:
        finals = [state.clone(memory_format=torch.contiguous_format) for state in layer.states0]
    else:
        last = [torch.empty(state.shape, dtype=dtype) for state in layer.states0]
        _run(layer, ys, c_history, saved, last)
        finals = [cast(state, storage) for state in last]
    histories = [] if c_history is None else [c_history]
    return Forward(
        [cast(ys, storage), *histories], finals, [] if saved is None else [as_gates(saved, layer.gate_dtype)]
    )


def _run(layer: Layer, ys: Tensor, c_history: Tensor | None, saved: Tensor | None, last: list[Tensor]) -> None:
    """Fills ys and c_history (T, B, directions·F), saved (directions, T, B, S·H) and last (directions, B, F)."""
    dtype, directions = layer.state_dtype, layer.directions
    hidden, outputs = layer.hidden_size, layer.output_size
    made = plan(
        layer.cell_name,
        dtype,
        tuple(layer.x.shape),
        hidden,
        outputs,
        directions,
        layer.reverse,
        layer.projected,
        launch.available_threads(),
    )
    w_hh = [w[0] for w in layer.w_hh]
    weights = [[cast(w, dtype) for w in group] for group in (layer.w_ih, w_hh, layer.biases, layer.extras)]
    x = dense_rows(layer.x, dtype)
    states0 = [dense(state, dtype) for state in layer.states0]
    lengths, resets = masks(layer)
    prepare(made, *weights).run(
        [
            ForwardArrays(
                lengths=address(lengths),
                resets=address(resets),
                x=address(x),
                x_step=x.stride(0),
                x_row=x.stride(1),
                h0=direction_address(states0[0], direction),
                c0=direction_address(states0[-1], direction),
                ys=address(ys, direction * outputs),
                history=address(c_history, direction * hidden),
                saved=direction_address(saved, direction),
                h_last=direction_address(last[0], direction),
                c_last=direction_address(last[-1], direction),
            )
            for direction in range(directions)
        ]
    )
