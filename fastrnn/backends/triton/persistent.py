"""Way 1: one launch for all steps, heads and directions of a layer; programs share nothing and wait for nobody."""

from __future__ import annotations

from typing import Any

from fastrnn.backends.layer import Layer
from fastrnn.backends.recurrence.buffers import BackwardBuffers, ForwardBuffers, Named
from fastrnn.backends.triton.configurations import STAGES, Tile, padded, precision
from fastrnn.backends.triton.constants import cell_constants
from fastrnn.backends.triton.kernels.backward import backward_kernel
from fastrnn.backends.triton.kernels.forward import forward_kernel
from fastrnn.backends.triton.launch import Grid, Launcher


def forward(layer: Layer, buffers: ForwardBuffers, tile: Tile) -> None:
    """Fills histories, gates and finals."""
    _launch(forward_kernel, layer, tile, buffers.named(), {})


def backward(layer: Layer, buffers: BackwardBuffers, tile: Tile) -> None:
    """Fills dgates and d_states0."""
    _launch(backward_kernel, layer, tile, buffers.named(), {"ARE_PREACTIVATIONS": buffers.are_preactivations})


def _launch(kernel: Any, layer: Layer, tile: Tile, named: Named, flags: dict[str, Any]) -> None:
    values: dict[str, Any] = {**named, "T": layer.x.shape[0], "B": layer.x.shape[1], "reverse": int(layer.reverse)}
    for name in ("w_hh", "b_hh"):
        each = values.pop(name, None) or [None]
        values |= {f"{name[0]}_forward": each[0], f"{name[0]}_reverse": each[-1]}
    arguments = [values[name] for name in kernel.arg_names if name in values]
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
