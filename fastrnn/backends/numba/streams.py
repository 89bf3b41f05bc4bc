"""What a stream's kernel works on: weights laid out once, in 32, 16 or 8 bits, states, scratch memory, its blocks."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn import heads
from fastrnn.backends.numba import workspace
from fastrnn.backends.numba.arguments import StreamCall, StreamLayer
from fastrnn.backends.numba.cell_code import cell_code
from fastrnn.backends.numba.compile import STREAM, kernel
from fastrnn.backends.numba.extents import Extents, extents
from fastrnn.backends.numba.geometry import CACHE_LINE, PANEL_VECTORS, Arena, divide_up, stream_units
from fastrnn.cells import Cell
from fastrnn.cells.weights import Parted
from fastrnn.cells.weights import heads as heads_in

CHUNK_ROWS = 32
"""Rows of x that are multiplied at a time: what the products of 512 units of an LSTM then take fits the second-level
cache."""
INT8_LARGEST, INT16_LARGEST, INT32_LARGEST = 127, 2**15 - 1, 2**31 - 1
FLOAT = torch.float32


class Weights(NamedTuple):
    """A matrix in panels, and its scales if it is in 8 bits."""

    panels: Tensor
    scales: Tensor | None


def laid_out(
    matrix: Tensor, gates: int, units: int, wide: int, lanes: int, format: str, of: Extents | None = None
) -> Weights:
    """A (gates·rows, K) float32 matrix in panels of `units` vectors of `wide` numbers for each gate.

    A panel's registers of `lanes` numbers lie two by two: (panels, pairs, K, 2, lanes), or of int8, which takes two of
    K at a time, (panels, pairs, K / 2, 2, lanes, 2), with scales (panels, units, gates, wide). `of` has with which of K
    each panel is multiplied, if that is not all; all panels are as deep then.

    Raises:
        ValueError: a number is too large for float16, or not finite in either format of fewer bits.
    """
    if format != "float32" and not bool(matrix.isfinite().all()):
        raise ValueError(f"stream: weights in {format} must be finite")
    scales = None
    if format == "int8":
        by_row = matrix.abs().amax(1, keepdim=True) / INT8_LARGEST
        matrix = (matrix / torch.where(by_row > 0, by_row, 1.0)).round_()
        scales = _by_panel(by_row, gates, units, wide)[:, 0].contiguous()
    elif format == "float16" and bool((matrix.abs() >= 65520).any()):
        raise ValueError("stream: a weight is too large for float16, whose largest number is 65504")
    panels = _by_panel(matrix, gates, units, wide).flatten(2)
    if of is not None:
        deep = panels.new_zeros((panels.shape[0], of.depth, panels.shape[2]))
        for panel, (first, count) in enumerate(zip(of.table[::2], of.table[1::2], strict=True)):
            deep[panel, :count] = panels[panel, first : first + count]
        panels = deep
    of_k = 2 if format == "int8" else 1
    panels = F.pad(panels, (0, -panels.shape[2] % (2 * lanes), 0, -panels.shape[1] % of_k))
    pairs = panels.unflatten(2, (-1, 2, lanes)).unflatten(1, (-1, of_k)).permute(0, 3, 1, 4, 5, 2)
    return Weights(pairs.to(getattr(torch, format)).contiguous(), scales)


def _by_panel(matrix: Tensor, gates: int, units: int, wide: int) -> Tensor:
    """(gates·rows, K) -> (panels, K, units, gates, wide), zeros past the rows."""
    rows, columns = matrix.shape[0] // gates, matrix.shape[1]
    width = units * wide
    padded = matrix.new_zeros((gates, divide_up(rows, width) * width, columns))
    padded[:, :rows] = matrix.view(gates, rows, columns)
    return padded.view(gates, -1, units, wide, columns).permute(1, 4, 2, 0, 3)


def limit(columns: int) -> int:
    """What the largest number of a row may become, so that no sum over so many products with int8 overflows."""
    return min(INT16_LARGEST, INT32_LARGEST // (INT8_LARGEST * max(1, columns)))


class _Sizes(NamedTuple):
    """Of one layer."""

    inputs: int
    hidden: int
    outputs: int
    of: Extents
    """of w_hh"""
    panels: int
    padded: int
    """hidden units in whole panels"""


class StreamMemory:
    """All that a stream's kernel reads and writes but x and the output.

    Args:
        cell, layers: the cell, and of each layer its weights, contiguous float32: (Gx·H, I), (Gu·H, P or H) or by
            heads, biases, w_hr and the cell's parameters.
        steps, batch: the most of a call.
        streams: how many states there are.
        format: "float32", "float16" or "int8", of weights; everything else is float32.
        batch_first: whether x and the output are (rows, steps, ...).
        step_inputs: of each layer what the cell takes in every step, (N, H), if anything.
    """

    def __init__(
        self,
        cell: Cell,
        layers: Sequence[Parted],
        steps: int,
        batch: int,
        streams: int,
        format: str,
        batch_first: bool,
        step_inputs: Sequence[Tensor | None],
    ) -> None:
        self.cell, self.format, self.batch, self.streams = cell, format, batch, streams
        self.kernel = kernel(cell.key, STREAM + format, FLOAT)
        self.lanes = self.kernel.geometry.lanes
        self.x_gates, self.u_gates = len(cell.x_gates), len(cell.u_gates)
        self.wide = self.lanes * self.kernel.geometry.registers
        self.units = stream_units(self.x_gates, self.u_gates, self.kernel.geometry.registers)
        self.chunk = max(1, min(steps, CHUNK_ROWS // batch))
        self.sizes = [self._sizes(layer) for layer in layers]
        self.home = torch.zeros((streams, self._home_row()), dtype=FLOAT)
        """states, a row for each: of each layer h and the others"""
        self.marks = torch.zeros(streams, dtype=torch.uint8)
        arena = Arena()
        self._weights = [self._laid_out(layer) for layer in layers]
        places = [[arena.take(w.nbytes) for w in weights] for weights in self._weights]
        laid = [self._layer(arena, sizes) for sizes in self.sizes]
        self.memory = workspace.pages(arena.size)
        start = self.memory.data_ptr()
        self._places = places
        call = StreamCall(*[0] * len(StreamCall._fields))._replace(
            layers=len(layers),
            swaps=int(batch_first),
            chunk=self.chunk,
            streams=streams,
            home=self.home.data_ptr(),
            home_row=self.home.stride(0),
            marks=self.marks.data_ptr(),
        )
        self._inputs = [None if given is None else given.contiguous() for given in step_inputs]
        self.blocks = array("q")
        self.state_places: list[tuple[int, ...]] = []
        home = 0
        for sizes, offsets, weights, given, layer in zip(self.sizes, laid, places, self._inputs, layers, strict=True):
            at = {name: start + offset for name, offset in offsets.items()}
            at |= {name: start + place for name, place in zip(_WEIGHTS, weights, strict=True)}
            others = home + sizes.outputs
            self.state_places.append((home, *[others + k * sizes.hidden for k in range(len(cell.states) - 1)]))
            self.blocks.extend((*call, *self._block(sizes, layer, at, home, others, given)))
            home = others + (len(cell.states) - 1) * sizes.hidden
        self.lay_out(layers, made=self._weights)
        del self._weights

    def lay_out(self, layers: Sequence[Parted], made: Sequence[Sequence[Tensor]] | None = None) -> None:
        """Lays out the weights of these layers in place of those that were there, of the same sizes.

        Raises:
            ValueError: see `laid_out`; nothing has changed then.
        """
        made = [self._laid_out(layer) for layer in layers] if made is None else made
        for tensors, places in zip(made, self._places, strict=True):
            for tensor, place in zip(tensors, places, strict=True):
                self._part(place, tensor).copy_(tensor.view(-1))

    def fits(self, layers: Sequence[Parted]) -> bool:
        """Whether layers have the sizes of those that are laid out."""
        return [self._sizes(layer) for layer in layers] == self.sizes

    def has(self, layers: Sequence[Parted]) -> bool:
        """Whether these weights are laid out already."""
        return all(
            torch.equal(self._part(place, tensor), tensor.view(-1))
            for layer, places in zip(layers, self._places, strict=True)
            for tensor, place in zip(self._laid_out(layer), places, strict=True)
        )

    def _part(self, place: int, like: Tensor) -> Tensor:
        return self.memory[place : place + like.nbytes].view(like.dtype)

    def _sizes(self, layer: Parted) -> _Sizes:
        hidden, inputs = layer.w_ih.shape[0] // self.x_gates, layer.w_ih.shape[1]
        outputs = layer.extras[0].shape[0] if layer.extras else hidden
        count = heads_in(layer.w_hh) if self.u_gates else 1
        width = self.units * self.wide
        of = extents(hidden, outputs // count, count, width)
        panels = divide_up(hidden, width)
        return _Sizes(inputs, hidden, outputs, of, panels, panels * width)

    def _home_row(self) -> int:
        row = sum(sizes.outputs + (len(self.cell.states) - 1) * sizes.hidden for sizes in self.sizes)
        return divide_up(row, CACHE_LINE // FLOAT.itemsize) * (CACHE_LINE // FLOAT.itemsize)

    def _laid_out(self, layer: Parted) -> list[Tensor]:
        """What is kept of a layer, in the order of `_WEIGHTS`."""
        empty = layer.w_ih.new_empty(0)
        x, u, units, wide = self.x_gates, self.u_gates, self.units, self.wide

        def scaled(made: Weights) -> list[Tensor]:
            return [made.panels, empty if made.scales is None else made.scales]

        def product(matrix: Tensor, gates: int, of: Extents | None = None) -> list[Tensor]:
            return scaled(laid_out(matrix, gates, units, wide, self.lanes, self.format, of))

        def bias(number: int, gates: int) -> Tensor:
            of_gates = layer.biases[number] if layer.biases else layer.w_ih.new_zeros(layer.w_ih.shape[0] // x * gates)
            return _by_panel(of_gates[:, None], gates, units, wide).contiguous()

        kept = [*product(layer.w_ih, x), bias(0, x)]
        if u:
            w_hh, of = layer.w_hh, None
            if heads_in(w_hh) > 1:
                w_hh, of = heads.dense_weights(w_hh, u), self._sizes(layer).of
            kept += [*product(w_hh, u, of), bias(1, u)]
        else:
            kept += [empty] * 3
        if layer.extras:
            kept += scaled(laid_out(layer.extras[0], 1, PANEL_VECTORS, self.lanes, self.lanes, self.format))
        else:
            kept += [empty] * 2
        return [*kept, torch.cat([*layer.parameters]) if layer.parameters else empty]

    def _layer(self, arena: Arena, sizes: _Sizes) -> dict[str, int]:
        """Where a layer's scratch memory lies."""
        item, rows = FLOAT.itemsize, self.chunk * self.batch
        kernel_of = cell_code(self.cell.key).kernel
        quantised = self._quantised_row(sizes)
        return {
            "no_bias": arena.take(PANEL_VECTORS * self.lanes * item),
            "rows_at": arena.take(rows * self._whole(sizes.inputs) * item),
            "h": arena.take(2 * self.batch * self._h_row(sizes) * item),
            "others": arena.take((len(self.cell.states) - 1) * self.batch * sizes.padded * item),
            "m": arena.take(self.batch * sizes.padded * item),
            "gx": arena.take(rows * sizes.padded * self.x_gates * item),
            "gh": arena.take(self.batch * sizes.padded * self.u_gates * item),
            "kept": arena.take(kernel_of.step_kept * sizes.padded * item),
            "qx": arena.take(rows * (self._whole(sizes.inputs) + self.lanes) * 2),
            "qx_scales": arena.take(rows * item),
            "qh": arena.take(self.batch * quantised * 2),
            "qh_scales": arena.take(self.batch * item),
        }

    def _whole(self, numbers: int) -> int:
        return divide_up(numbers, self.lanes) * self.lanes

    def _quantised_row(self, sizes: _Sizes) -> int:
        """Room for h or for what is projected; one more vector, of which the last pair may begin."""
        return self._whole(max(sizes.outputs, sizes.hidden)) + self.lanes

    def _h_row(self, sizes: _Sizes) -> int:
        """Whole panels, of a projection too."""
        wide = PANEL_VECTORS * self.lanes
        return max(sizes.padded, divide_up(sizes.outputs, wide) * wide)

    def _block(
        self, sizes: _Sizes, layer: Parted, at: dict[str, int], home: int, others: int, given: Tensor | None
    ) -> StreamLayer:
        return StreamLayer(
            inputs=sizes.inputs,
            hidden=sizes.hidden,
            outputs=sizes.outputs,
            panels=sizes.panels,
            extents=sizes.of.address,
            depth=sizes.of.depth,
            projected=int(bool(layer.extras)),
            step_inputs=0 if given is None else given.data_ptr(),
            home_h=home,
            home_others=others,
            rows_row=self._whole(sizes.inputs),
            h_row=self._h_row(sizes),
            current=0,
            others_row=sizes.padded,
            qx_row=self._whole(sizes.inputs) + self.lanes,
            qx_limit=limit(sizes.inputs),
            qh_row=self._quantised_row(sizes),
            qh_limit=limit(sizes.of.depth),
            qm_limit=limit(sizes.hidden),
            **at,
        )


_WEIGHTS = ("w_ih", "scales_ih", "bias_ih", "w_hh", "scales_hh", "bias_hh", "w_hr", "scales_hr", "parameters")
