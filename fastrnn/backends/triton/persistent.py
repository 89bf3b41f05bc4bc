"""Way 1: one launch for all steps, heads and directions of a layer; programs share nothing and wait for nobody."""

from __future__ import annotations

from typing import Any

from fastrnn.backends.layer import Layer
from fastrnn.backends.recurrence.buffers import BackwardBuffers, ForwardBuffers, both
from fastrnn.backends.triton.configurations import STAGES, Tile, padded, precision
from fastrnn.backends.triton.constants import cell_constants
from fastrnn.backends.triton.kernels.backward import backward_kernel
from fastrnn.backends.triton.kernels.forward import forward_kernel
from fastrnn.backends.triton.launch import Grid, Launcher


def forward(layer: Layer, buffers: ForwardBuffers, tile: Tile) -> None:
    """Fills ys, cs, gates and finals."""
    b_hh: list[Any] = buffers.b_hh or [None]
    arguments = (
        buffers.gx,
        buffers.w_hh[0],
        buffers.w_hh[-1],
        b_hh[0],
        b_hh[-1],
        *both(buffers.states0),
        buffers.masks.lengths,
        buffers.masks.resets,
        buffers.ys,
        buffers.cs,
        buffers.gates,
        *both(buffers.finals),
        *_sizes(layer),
    )
    _launch(forward_kernel, layer, tile, arguments, {})


def backward(layer: Layer, buffers: BackwardBuffers, tile: Tile) -> None:
    """Fills dgates and d_states0."""
    arguments = (
        buffers.w_hh[0],
        buffers.w_hh[-1],
        buffers.ys,
        buffers.cs,
        buffers.gates,
        *both(buffers.states0),
        buffers.masks.lengths,
        buffers.masks.resets,
        buffers.dys,
        buffers.dcs,
        *both(buffers.d_finals),
        buffers.dgates,
        *both(buffers.d_states0),
        *_sizes(layer),
    )
    _launch(backward_kernel, layer, tile, arguments, {"ARE_PREACTIVATIONS": buffers.are_preactivations})


def _sizes(layer: Layer) -> tuple[int, int, int]:
    steps, batch, _ = layer.x.shape
    return steps, batch, int(layer.reverse)


def _launch(kernel: Any, layer: Layer, tile: Tile, arguments: tuple[Any, ...], flags: dict[str, Any]) -> None:
    units = layer.hidden_size // layer.heads
    kind = precision(layer.x.dtype)
    constants = cell_constants(layer) | {
        "D": units,
        "DP": padded(units),
        "BT": tile.batch,
        "STAGES": STAGES,
        "PRECISION": kind if kind in ("tf32", "tf32x3") else "ieee",
        **flags,
    }
    grid: Grid = (-(-layer.x.shape[1] // tile.batch), layer.heads, layer.directions)
    Launcher(kernel, arguments, constants, tile.warps, STAGES)(grid, *arguments)
