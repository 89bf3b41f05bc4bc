"""The forward of a layer: memory for results, weights in panels, and one launch or two."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn.backends.addresses import address
from fastrnn.backends.layer import Forward, Layer, as_gates
from fastrnn.backends.numba import launch, unpacked, workspace
from fastrnn.backends.numba.arguments import FIELDS
from fastrnn.backends.numba.forward_schedule import Schedule, schedule
from fastrnn.backends.numba.other_states import apart, place
from fastrnn.backends.numba.panels import PanelsLaunch, Source, readable, source
from fastrnn.backends.numba.sharing import Pace
from fastrnn.backends.numba.tensors import cast, dense, dense_rows, masks, step_inputs, unit_parameters
from fastrnn.cells.known import KNOWN

_COUNTER, _MEMORY = FIELDS["forward"].index("counter"), launch.HEADER + FIELDS["forward"].index("memory")
_LENGTHS, _RESETS, _X, _X_STEP, _X_ROW, _H0, _C0, _YS, _HISTORY, _SAVED, _H_LAST, _C_LAST, *_OF_CELL = (
    launch.HEADER + FIELDS["forward"].index(name)
    for name in (
        *("lengths", "resets", "x", "x_step", "x_row", "h0", "c0"),
        *("ys", "history", "saved", "h_last", "c_last", "parameters", "step_inputs"),
        "recurrent_mask",
    )
)
"""Where in a launch's memory, for the first direction."""
_PARAMETERS, _INPUTS, _MASK = _OF_CELL
_BLOCK = len(FIELDS["forward"])
"""How far the other's lie from there."""


class _Strides(NamedTuple):
    """The bytes between what belongs to one direction and what belongs to the other."""

    h: int
    c: int
    ys: int
    history: int
    saved: int
    parameters: int
    inputs: int


class ForwardLaunch(NamedTuple):
    """A layer's forward with these weights, but for the addresses of what changes from call to call."""

    schedule: Schedule
    panels: PanelsLaunch
    launches: list[tuple[int, array[int], Pace]]
    """how many threads, a launch's memory with the shape of each direction, and how long it took"""
    strides: _Strides
    directions: range
    no_bias: Tensor | None
    """zeros, where the layer has no biases"""
    kept: list[Tensor]
    """one piece of memory at most, in which the weights are laid out already, but for the time that a call uses it"""

    def keep_weights(self) -> None:
        """Lays the weights out once for all calls; one at the same time as another lays them out for itself."""
        memory = torch.empty(self.schedule.memory, dtype=torch.uint8)
        self.panels.run(memory.data_ptr())
        self.kept.append(memory)

    def run(
        self,
        x: int,
        x_step: int,
        x_row: int,
        h0: int,
        c0: int,
        ys: int,
        h_last: int,
        c_last: int,
        history: int = 0,
        saved: int = 0,
        lengths: int = 0,
        resets: int = 0,
        parameters: int = 0,
        inputs: int = 0,
        recurrent_mask: int = 0,
    ) -> None:
        """Computes everything, with these addresses. Several threads may do so at the same time.

        x (T, B, I) has dense rows, `x_step` and `x_row` elements apart. The states (directions, B, P or H) are dense,
        as are the output (T, B, directions·P or directions·H), every c, if asked for (T, B, directions·H), and what the
        cell saves, if asked for (directions, T, B, S·H), its parameters (directions, P, H), and the inputs of its steps
        (directions, T, B, N·H); the mask of recurrent dropout is as h. Where the cell has no c, its addresses are of no
        account; where it has more states than h and c, they are those of tables of addresses, int64 (directions,
        others).
        """
        h_, c_, ys_, history_, saved_, parameters_, inputs_ = self.strides
        launches = []
        for threads, shapes, pace in self.launches:
            blocks = shapes[:]
            launches.append((threads, blocks, pace))
            for direction in self.directions:
                at = direction * _BLOCK
                blocks[at + _LENGTHS], blocks[at + _RESETS] = lengths, resets
                blocks[at + _X], blocks[at + _X_STEP], blocks[at + _X_ROW] = x, x_step, x_row
                blocks[at + _H0], blocks[at + _C0] = h0 + direction * h_, c0 + direction * c_
                blocks[at + _YS] = ys + direction * ys_
                blocks[at + _HISTORY] = history and history + direction * history_
                blocks[at + _SAVED] = saved and saved + direction * saved_
                blocks[at + _H_LAST], blocks[at + _C_LAST] = h_last + direction * h_, c_last + direction * c_
                blocks[at + _PARAMETERS] = parameters + direction * parameters_
                blocks[at + _INPUTS] = inputs + direction * inputs_
                blocks[at + _MASK] = recurrent_mask and recurrent_mask + direction * h_
        try:
            memory = self.kept.pop()
        except IndexError:
            memory = workspace.take(self.schedule.memory)
            self.panels.run(memory.data_ptr())
            self._start(memory.data_ptr(), launches)
            workspace.give_back(memory)
        else:
            try:
                self._start(memory.data_ptr(), launches)
            finally:
                self.kept.append(memory)

    def _start(self, place: int, launches: list[tuple[int, array[int], Pace]]) -> None:
        for threads, blocks, pace in launches:
            for direction in self.directions:
                blocks[direction * _BLOCK + _MEMORY] = place
            launch.start(self.schedule.kernel, threads, blocks, _COUNTER, pace)


def forward_launch(
    cell: str,
    x_shape: tuple[int, ...],
    w_ih: Sequence[Tensor],
    w_hh: Sequence[Tensor],
    biases: Sequence[Tensor],
    extras: Sequence[Tensor],
    reverse: bool,
    masked: bool = False,
) -> ForwardLaunch:
    """The forward over x (T, B, I) with these weights, which are read where they are; the caller keeps them.

    For each direction (Gx·H, I), (N·Gu·D, D) or (Gu·H, P), then (Gx·H,) and (Gu·H,), if any, and (P, H), if any, as
    `readable` gives them. `masked` is whether there is recurrent dropout.
    """
    steps, batch, _ = x_shape
    dtype, directions, projected = w_ih[0].dtype, len(w_ih), len(extras) > 0
    contract = KNOWN[cell]
    hidden, columns = w_ih[0].shape[0] // len(contract.x_gates), w_hh[0].shape[1]
    outputs = columns if projected else hidden
    cut = schedule(
        cell,
        dtype,
        x_shape,
        hidden,
        outputs,
        outputs // columns,
        directions,
        reverse,
        projected,
        launch.available_threads(),
        masked,
    )
    no_bias = None if biases else torch.zeros(max(w_ih[0].shape[0], w_hh[0].shape[0]), dtype=dtype)
    sources: list[Source] = []
    for direction in range(directions):
        b_ih, b_hh = biases[2 * direction : 2 * direction + 2] if no_bias is None else (no_bias, no_bias)
        one_way = slice(direction, direction + 1)
        of_u = (w_hh[direction], b_hh) if contract.u_gates else ()
        sources += map(source, (w_ih[direction], b_ih, *of_u, *extras[one_way]))
    launches = []
    for threads, shapes, pace in cut.launches:
        blocks = launch.no_blocks()
        for shape in shapes:
            blocks.extend((*shape, *[0] * (_BLOCK - len(shape))))
        launches.append((threads, blocks, pace))
    others, rows, h, c = len(contract.states) - 1, steps * batch, outputs * dtype.itemsize, hidden * dtype.itemsize
    strides = _Strides(
        h=batch * h,
        c=apart(others, batch * c),
        ys=h,
        history=apart(others, c),
        saved=rows * len(contract.saved) * c,
        parameters=len(contract.parameters) * c,
        inputs=rows * len(contract.inputs) * c,
    )
    return ForwardLaunch(cut, cut.panels.launch(sources), launches, strides, range(directions), no_bias, [])


class BoundForward:
    """A layer's forward for calls of one signature: see `bind`."""

    def __init__(self, layer: Layer, history: bool, gates: bool) -> None:
        steps, batch, _ = layer.x.shape
        dtype, directions, hidden = layer.state_dtype, layer.directions, layer.hidden_size
        self.dtype, self.shape = dtype, tuple(layer.x.shape)
        self.output = (steps, batch, directions * layer.output_size)
        self.histories = [(steps, batch, directions * hidden)] * (len(layer.states0) - 1 if history else 0)
        saves = len(layer.cell.saved)
        self.saved = (directions, steps, batch, saves * hidden) if gates and saves else None
        self.is_empty = batch == 0 or steps == 0
        in_place = dtype == layer.x.dtype and all(w.is_contiguous() for w in _weights(layer))
        self.launch = self._launch(layer)[0] if in_place and not self.is_empty else None
        """with weights that are read where they lie; those that do not lie as kernels need them are copied in each
        call"""

    def _launch(self, layer: Layer) -> tuple[ForwardLaunch, Sequence[Any]]:
        """And what is to be kept for it."""
        w_hh = [w.flatten(0, 1) for w in layer.w_hh]
        groups = (layer.w_ih, w_hh, layer.biases, layer.extras)
        weights = w_ih, w_hh, biases, extras = [readable(group, self.dtype) for group in groups]
        masked = layer.recurrent_mask is not None
        return forward_launch(layer.cell_name, self.shape, w_ih, w_hh, biases, extras, layer.reverse, masked), weights

    def __call__(self, layer: Layer) -> Forward:
        """The results for a layer of this signature, with the weights that it was bound with."""
        dtype, storage = self.dtype, layer.x.dtype
        ys = workspace.empty(self.output, dtype)
        histories = [workspace.empty(sizes, dtype) for sizes in self.histories]
        saved = None if self.saved is None else workspace.empty(self.saved, dtype)
        if self.is_empty:
            finals = [state.clone(memory_format=torch.contiguous_format) for state in layer.states0]
        else:
            x, states0 = dense_rows(layer.x, dtype), [dense(state, dtype) for state in layer.states0]
            last = [torch.empty_like(state) for state in states0]
            lengths, resets = masks(layer)
            bound, _weights = (self.launch, None) if self.launch is not None else self._launch(layer)
            parameters, inputs = unit_parameters(layer), step_inputs(layer)
            mask = None if layer.recurrent_mask is None else dense(layer.recurrent_mask, dtype)
            size = states0[0].stride(0) * dtype.itemsize if len(states0) > 2 else 0
            c0, c_last = (place(states[1:], layer.directions, size) for states in (states0, last))
            c = place(histories, layer.directions, layer.hidden_size * dtype.itemsize)
            bound.run(
                address(x),
                x.stride(0),
                x.stride(1),
                address(states0[0]),
                c0.address,
                ys.data_ptr(),
                last[0].data_ptr(),
                c_last.address,
                c.address,
                0 if saved is None else saved.data_ptr(),
                address(lengths),
                address(resets),
                address(parameters),
                address(inputs),
                address(mask),
            )
            finals = last if dtype is storage else [cast(state, storage) for state in last]
        return Forward(
            [cast(ys, storage), *histories], finals, [] if saved is None else [as_gates(saved, layer.gate_dtype)]
        )


def _weights(layer: Layer) -> list[Tensor]:
    return [*layer.w_ih, *layer.w_hh, *layer.biases, *layer.extras]


def bind(layer: Layer, *, history: bool, gates: bool) -> Callable[[Layer], Forward]:
    """What computes the forward of layers like this one: of its cell, shapes and dtypes, with its weights.

    The weights must not move; their values may change.
    """
    if not history and not gates and unpacked.serves(layer):
        return unpacked.forward
    return BoundForward(layer, history, gates)
