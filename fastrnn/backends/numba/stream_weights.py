"""The weights of a stream's layers as its kernel reads them: laid out once, in 32, 16 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn import heads
from fastrnn.backends.numba import workspace
from fastrnn.backends.numba.compile import STREAM, kernel
from fastrnn.backends.numba.extents import Extents, extents
from fastrnn.backends.numba.geometry import PANEL_VECTORS, Arena, divide_up, stream_units
from fastrnn.cells import Cell
from fastrnn.cells.weights import Parted
from fastrnn.cells.weights import heads as heads_in

INT8_LARGEST, INT16_LARGEST, INT32_LARGEST = 127, 2**15 - 1, 2**31 - 1
_KEPT = (
    "w_ih",
    "scales_ih",
    "bias_ih",
    "w_hh",
    "scales_hh",
    "bias_hh",
    "w_hr",
    "scales_hr",
    "parameters",
    "step_inputs",
)
"""What is kept of a layer, by the names of a kernel's arguments."""


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
        # Of rows so small that their scale is rounded itself the largest might be more.
        whole = (matrix / torch.where(by_row > 0, by_row, 1.0)).round_()
        matrix = whole.clamp_(-INT8_LARGEST, INT8_LARGEST)
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


class Sizes(NamedTuple):
    """Of one layer."""

    inputs: int
    hidden: int
    outputs: int
    of: Extents
    """of w_hh"""
    panels: int
    padded: int
    """hidden units in whole panels"""
    projected: bool


class StreamWeights:
    """All layers' weights, and the sizes that follow from them.

    Args:
        cell, layers: the cell, and of each layer its weights, contiguous float32: (Gx·H, I), (Gu·H, P or H) or by
            heads, biases, w_hr and the cell's parameters.
        step_inputs: of each layer what the cell takes in every step, (N, H), if anything.
        format: "float32", "float16" or "int8", of matrices; everything else is float32.

    Raises:
        ValueError: see `laid_out`.
    """

    def __init__(self, cell: Cell, layers: Sequence[Parted], step_inputs: Sequence[Tensor | None], format: str) -> None:
        self.cell, self.format = cell, format
        self.kernel = kernel(cell.key, STREAM + format, torch.float32)
        self.lanes = self.kernel.geometry.lanes
        self.x_gates, self.u_gates = len(cell.x_gates), len(cell.u_gates)
        self._wide = self.lanes * self.kernel.geometry.registers
        self._units = stream_units(self.x_gates, self.u_gates, self.kernel.geometry.registers)
        self.sizes = [self._sizes(layer) for layer in layers]
        made, arena = self._made(layers, step_inputs), Arena()
        self._places = [[arena.take(w.nbytes) for w in tensors] for tensors in made]
        self._memory = workspace.pages(arena.size)
        start = self._memory.data_ptr()
        self.addresses = [
            {name: start + place for name, place in zip(_KEPT, places, strict=True)} for places in self._places
        ]
        """of each layer, by the names of a kernel's arguments"""
        self._put(made)

    def lay_out(self, layers: Sequence[Parted], step_inputs: Sequence[Tensor | None]) -> None:
        """Lays out those of these layers, of the same sizes, in place of those that were there.

        Raises:
            ValueError: see `laid_out`; nothing has changed then.
        """
        self._put(self._made(layers, step_inputs))

    def fits(self, layers: Sequence[Parted]) -> bool:
        """Whether layers have the sizes of those that are laid out."""
        return [self._sizes(layer) for layer in layers] == self.sizes

    def has(self, layers: Sequence[Parted], step_inputs: Sequence[Tensor | None]) -> bool:
        """Whether these are laid out already, to the bit."""
        return all(
            torch.equal(self._part(place, tensor).view(torch.uint8), tensor.view(-1).view(torch.uint8))
            for tensors, places in zip(self._made(layers, step_inputs), self._places, strict=True)
            for tensor, place in zip(tensors, places, strict=True)
        )

    def _made(self, layers: Sequence[Parted], step_inputs: Sequence[Tensor | None]) -> list[list[Tensor]]:
        """What is kept of each layer, in the order of `_KEPT`."""
        return [
            [*self._laid_out(layer), layer.w_ih.new_empty(0) if given is None else given.contiguous()]
            for layer, given in zip(layers, step_inputs, strict=True)
        ]

    def _put(self, made: Sequence[Sequence[Tensor]]) -> None:
        for tensors, places in zip(made, self._places, strict=True):
            for tensor, place in zip(tensors, places, strict=True):
                self._part(place, tensor).copy_(tensor.view(-1))

    def _part(self, place: int, like: Tensor) -> Tensor:
        return self._memory[place : place + like.nbytes].view(like.dtype)

    def _sizes(self, layer: Parted) -> Sizes:
        hidden, inputs = layer.w_ih.shape[0] // self.x_gates, layer.w_ih.shape[1]
        outputs = layer.extras[0].shape[0] if layer.extras else hidden
        count = heads_in(layer.w_hh) if self.u_gates else 1
        geometry, vectors = self.kernel.geometry, self._units * self.kernel.geometry.registers
        of = extents(hidden, outputs // count, count, self._units * self._wide)
        panels, padded = geometry.panels(hidden, vectors), geometry.padded(hidden, vectors)
        return Sizes(inputs, hidden, outputs, of, panels, padded, bool(layer.extras))

    def _laid_out(self, layer: Parted) -> list[Tensor]:
        """Matrices, biases and parameters of a layer, in the order of `_KEPT`."""
        empty = layer.w_ih.new_empty(0)
        x, u, units, wide = self.x_gates, self.u_gates, self._units, self._wide

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
