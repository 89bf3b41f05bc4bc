"""Which kernel serves a layer and in which shape: one committed table, nothing is tuned at first use.

The tiles are those that `python -m benchmarks.tune_triton` compiles, for sm_80, sm_90 and sm_100, without moving a
register to memory inside the time loop, at the fewest instructions and barriers a step; twice the warps must save 10 %.
They were chosen by what was compiled; how fast some of them are, `docs/performance-gpu.md` tells. Those of cells that
are not built in were taken from the built-in ones where they fit; other numbers of warps were not compared, nor timed.
`tests/backends/test_triton_compiled.py` holds every row to it, and says where one bends the rule.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from fastrnn.backends import tf32
from fastrnn.backends.layer import Layer
from fastrnn.backends.triton.interpreter import INTERPRETED
from fastrnn.cells.contract import Cell
from fastrnn.cells.known import KNOWN

SMALLEST_TILE = 16
"""Units: what one product of the tensor cores takes."""
FORWARD_BATCH = 8
"""Sequences of a program, forward: N of the tensor cores' product, whose least is 8. The fewer, the more programs share
a batch, and the shorter a step."""
BACKWARD_BATCH = 16
"""As FORWARD_BATCH; backward the batch is M of the product, whose least is 16."""
STAGES = 3
"""What a step loads is asked for two steps ahead, some 0.5 µs: about the latency of memory."""


class Tile(NamedTuple):
    """How a persistent kernel is compiled."""

    batch: int
    """sequences of a program"""
    warps: int
    shared_memory: int
    """bytes that its largest variant takes on any of the architectures, in KiB: a device with less cannot run it; of
    cells that are not built in, on sm_90"""


class Numbers(NamedTuple):
    """What makes a cell's kernels large."""

    x_gates: int
    u_gates: int
    states: int
    others: int
    """parameters and inputs of the steps"""
    blocks: int
    saved: int

    @classmethod
    def of(cls, cell: Cell) -> Numbers:
        groups = cell.x_gates, cell.u_gates, cell.states, (*cell.parameters, *cell.inputs), cell.blocks, cell.saved
        return cls(*map(len, groups))


class Row(NamedTuple):
    """A range of layers and the tiles that serve it; None is left to the per-step kernels."""

    most: Numbers
    precisions: tuple[str, ...]
    """of the recurrent product, as `precision` names them"""
    units: int
    """of a head at most, padded to a power of two"""
    forward: Tile | None
    backward: Tile | None
    reason: str

    def serves(self, numbers: Numbers, precision: str, units: int) -> bool:
        within = all(number <= most for number, most in zip(numbers, self.most, strict=True))
        return within and precision in self.precisions and units <= self.units


def _forward(warps: int, kibibytes: int) -> Tile:
    return Tile(FORWARD_BATCH, warps, kibibytes * 1024)


def _backward(warps: int, kibibytes: int) -> Tile:
    return Tile(BACKWARD_BATCH, warps, kibibytes * 1024)


_HALF = ("16 bit",)
_SIMPLE = Numbers(1, 1, 1, 0, 1, 0)
"""The plain RNN's."""
_ONE = Numbers(4, 1, 2, 2, 4, 4)
"""STAR's, and some more."""
_TWO = Numbers(4, 2, 2, 2, 4, 4)
"""MGU's and LiGRU's, and some more."""
_GATED = Numbers(4, 4, 2, 0, 4, 4)
"""The LSTM's; the GRU's and CIFG's are smaller."""
_MORE = Numbers(8, 4, 4, 4, 8, 8)
"""More than those of the LSTM with peepholes or zoneout, and of sLSTM."""
_MANY = Numbers(16, 8, 8, 8, 16, 16)
"""No library cell's: compiled for a cell of seven gates."""
_NORMALISED = Numbers(8, 4, 4, 16, 16, 8)
"""More than those of an LSTM with layer normalisation."""
_AS_SIMPLE = "as the plain RNN's: one gate of u has as many rows"
_AS_GATED = "as the LSTM's, whose weights have as many rows a unit or more"
_GATES = "forward, a warp for 8 units: it holds all gates of its units. Backward, twice the warps would save under 10 %"
_ONE_GATE = "forward, a warp for 16 units, the rows of one product. Backward, half the warps take over 25 % more"

ROWS = (
    Row(_SIMPLE, _HALF, 16, _forward(2, 1), _backward(2, 3), "more than 2 warps would only repeat each other"),
    Row(_SIMPLE, _HALF, 32, _forward(4, 3), _backward(4, 5), "2 warps take over 25 % more in 16 bit"),
    Row(_SIMPLE, _HALF, 64, _forward(4, 10), _backward(8, 10), _ONE_GATE),
    Row(_SIMPLE, _HALF, 128, _forward(8, 36), _backward(16, 36), _ONE_GATE),
    Row(_SIMPLE, _HALF, 256, _forward(16, 136), _backward(16, 136), _ONE_GATE),
    Row(_ONE, _HALF, 16, _forward(2, 2), _backward(2, 6), _AS_SIMPLE),
    Row(_ONE, _HALF, 32, _forward(2, 3), _backward(4, 12), _AS_SIMPLE),
    Row(_ONE, _HALF, 64, _forward(4, 9), _backward(8, 24), _AS_SIMPLE),
    Row(_ONE, _HALF, 128, _forward(8, 34), _backward(16, 48), _AS_SIMPLE),
    Row(_TWO, _HALF, 16, _forward(2, 2), _backward(2, 7), _AS_GATED),
    Row(_TWO, _HALF, 32, _forward(4, 5), _backward(4, 14), _AS_GATED),
    Row(_TWO, _HALF, 64, _forward(8, 17), _backward(8, 28), _AS_GATED),
    Row(_TWO, _HALF, 128, _forward(16, 66), _backward(16, 56), _AS_GATED),
    Row(_GATED, _HALF, 16, _forward(2, 3), _backward(2, 12), _GATES),
    Row(_GATED, _HALF, 32, _forward(4, 9), _backward(4, 26), _GATES),
    Row(_GATED, _HALF, 64, _forward(8, 34), _backward(8, 52), _GATES),
    Row(_GATED, _HALF, 128, _forward(16, 132), _backward(16, 104), "8 warps take a half more, forward and backward"),
    Row(_MORE, _HALF, 16, _forward(2, 3), _backward(2, 22), _AS_GATED),
    Row(_MORE, _HALF, 32, _forward(4, 9), _backward(4, 44), _AS_GATED),
    Row(_MORE, _HALF, 64, _forward(8, 33), _backward(8, 88), _AS_GATED),
    Row(_MORE, _HALF, 128, _forward(16, 130), None, "backward, 16 warps spill"),
    Row(_MANY, _HALF, 16, _forward(2, 5), _backward(4, 26), _AS_GATED),
    Row(_MANY, _HALF, 32, _forward(4, 17), _backward(8, 52), "backward, twice the LSTM's warps"),
    Row(_NORMALISED, _HALF, 16, _forward(2, 3), None, "backward, 8 warps spill, and fewer do so more"),
    Row(_NORMALISED, _HALF, 32, _forward(4, 9), _backward(8, 34), "backward, 4 warps spill"),
    Row(_NORMALISED, _HALF, 64, _forward(8, 33), None, "backward, 8 warps spill, and so do 16"),
    Row(_SIMPLE, ("tf32", "tf32x3"), 16, _forward(2, 3), _backward(2, 5), "more than 2 warps would repeat each other"),
    Row(_SIMPLE, ("tf32", "tf32x3"), 32, _forward(4, 10), _backward(4, 12), "2 warps take over 10 % more"),
    Row(_SIMPLE, ("tf32", "tf32x3"), 64, _forward(4, 36), _backward(8, 32), _ONE_GATE),
    Row(_SIMPLE, ("tf32",), 128, _forward(8, 72), _backward(16, 72), _ONE_GATE),
    Row(_SIMPLE, ("tf32x3",), 128, _forward(8, 136), _backward(8, 128), "16 warps spill"),
    Row(_ONE, ("tf32", "tf32x3"), 16, _forward(2, 3), _backward(2, 12), _AS_SIMPLE),
    Row(_ONE, ("tf32", "tf32x3"), 32, _forward(2, 10), _backward(4, 24), _AS_SIMPLE),
    Row(_ONE, ("tf32", "tf32x3"), 64, _forward(4, 36), _backward(8, 48), _AS_SIMPLE),
    Row(_ONE, ("tf32",), 128, _forward(8, 72), _backward(16, 96), _AS_SIMPLE),
    Row(_TWO, ("tf32", "tf32x3"), 16, _forward(2, 5), _backward(2, 16), _AS_GATED),
    Row(_TWO, ("tf32", "tf32x3"), 32, _forward(4, 18), _backward(4, 32), _AS_GATED),
    Row(_TWO, ("tf32", "tf32x3"), 64, _forward(8, 68), _backward(8, 64), _AS_GATED),
    Row(_TWO, ("tf32",), 128, _forward(16, 136), None, "backward, MGU spills with 16 warps"),
    Row(_GATED, ("tf32", "tf32x3"), 16, _forward(2, 9), _backward(4, 20), "backward, the LSTM spills with 2 warps"),
    Row(_GATED, ("tf32", "tf32x3"), 32, _forward(4, 34), _backward(8, 40), "backward, the LSTM spills with 4 warps"),
    Row(_GATED, ("tf32",), 64, _forward(8, 68), _backward(8, 80), "backward, 16 warps take twice the issue slots"),
    Row(_GATED, ("tf32x3",), 64, _forward(8, 132), _backward(8, 80), "16 warps spill, 4 do so more"),
    Row(_MORE, ("tf32",), 16, _forward(2, 8), _backward(4, 30), _AS_GATED),
    Row(_MORE, ("tf32x3",), 16, _forward(2, 9), _backward(8, 30), "backward, sLSTM spills with 4 warps"),
    Row(_MORE, ("tf32", "tf32x3"), 32, _forward(4, 34), _backward(8, 60), _AS_GATED),
    Row(_MORE, ("tf32",), 64, _forward(8, 68), None, "backward, 8 warps spill, and so do 16"),
    Row(_MORE, ("tf32x3",), 64, _forward(8, 132), None, "backward, 8 warps spill"),
    Row(_MANY, ("tf32", "tf32x3"), 16, _forward(4, 11), None, "backward, 8 warps spill"),
    Row(_MANY, ("tf32", "tf32x3"), 32, _forward(8, 34), None, "backward, 8 warps spill"),
    Row(_NORMALISED, ("tf32", "tf32x3"), 16, _forward(2, 9), None, "backward, 8 warps spill"),
    Row(_NORMALISED, ("tf32", "tf32x3"), 32, _forward(4, 34), None, "backward, 16 warps spill"),
    Row(_NORMALISED, ("tf32", "tf32x3"), 64, _forward(8, 132), None, _AS_GATED),
)
"""The first row that serves a layer is its own. What no row serves is too large for one program's registers."""


def precision(dtype: torch.dtype) -> str:
    """How the recurrent product of tensors of `dtype` is computed.

    "16 bit": as they are; "tf32": float32 cut to 10 bits, where torch allows it to its own recurrent layers (by
    default it does); "tf32x3": float32 as the sum of three such products; "float64".
    """
    if dtype == torch.float64:
        return "float64"
    if dtype != torch.float32:
        return "16 bit"
    return "tf32" if tf32.allowed() else "tf32x3"


def padded(units: int) -> int:
    """The width of a tile that holds a head's units: a power of two."""
    return max(SMALLEST_TILE, 1 << (units - 1).bit_length())


def _row(layer: Layer) -> Row | None:
    kind = precision(layer.x.dtype)
    if INTERPRETED and kind == "float64":
        kind = "tf32"  # NumPy multiplies float64 as well as any: all kernels can be compared in it
    units = padded(int(layer.hidden_size) // int(layer.heads))  # of a trace, sizes are tensors
    return row_of(layer.cell_name, kind, units)


@cache
def row_of(cell_name: str, precision: str, units: int) -> Row | None:
    """The one that serves a cell's layers; None of cells without a product of the state."""
    cell = KNOWN[cell_name]
    numbers = Numbers.of(cell)
    served = (row for row in ROWS if cell.u_gates and row.serves(numbers, precision, units))
    return next(served, None)


def forward_tile(layer: Layer) -> Tile | None:
    """The persistent kernel for a layer's forward, or None where the per-step kernels serve it."""
    row = _row(layer)
    return None if row is None else _fitting(row.forward, layer.x.device)


def backward_tile(layer: Layer) -> Tile | None:
    """As `forward_tile`, for the backward."""
    row = _row(layer)
    return None if row is None else _fitting(row.backward, layer.x.device)


def _fitting(tile: Tile | None, device: torch.device) -> Tile | None:
    """`tile` where the device has the shared memory for it."""
    if tile is None or INTERPRETED:
        return tile
    return tile if tile.shared_memory <= _shared_memory(device.index or 0) else None


@cache
def _shared_memory(device: int) -> int:
    """Bytes that one program may use."""
    from triton.runtime import driver

    available: int = driver.active.utils.get_device_properties(device)["max_shared_mem"]
    return available
