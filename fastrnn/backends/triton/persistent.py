"""Way 1: one launch for all steps, heads and directions of a layer; programs share nothing and wait for nobody."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from fastrnn.backends.layer import Layer
from fastrnn.backends.notices import notice
from fastrnn.backends.recurrence.buffers import BackwardBuffers, ForwardBuffers
from fastrnn.backends.triton.configurations import STAGES, Tile, padded, precision
from fastrnn.backends.triton.constants import cell_constants
from fastrnn.backends.triton.kernels.backward import backward_kernel
from fastrnn.backends.triton.kernels.forward import forward_kernel
from fastrnn.backends.triton.launch import Grid, Launcher


def forward(layer: Layer, buffers: ForwardBuffers, tile: Tile) -> bool:
    """Fills histories, gates and finals; or does nothing and returns False where the kernel is too large.

    The table knows the built-in cells' kernels without recurrent dropout. Others are looked at when they are compiled.
    """
    b_hh: list[Tensor | None] = [*buffers.b_hh] or [None]
    arguments = (
        buffers.gx,
        buffers.w_hh[0],
        buffers.w_hh[-1],
        b_hh[0],
        b_hh[-1],
        buffers.parameters,
        tuple(buffers.inputs) or None,
        tuple(buffers.states0),
        buffers.masks.lengths,
        buffers.masks.resets,
        buffers.recurrent_mask,
        tuple(buffers.histories),
        buffers.gates,
        tuple(buffers.finals),
    )
    return _launch(forward_kernel, layer, tile, arguments, {})


def backward(layer: Layer, buffers: BackwardBuffers, tile: Tile) -> bool:
    """Fills dgates and d_states0; or does nothing, as `forward`."""
    arguments = (
        buffers.w_hh[0],
        buffers.w_hh[-1],
        tuple(buffers.histories),
        buffers.gates,
        tuple(buffers.states0),
        buffers.parameters,
        tuple(buffers.inputs) or None,
        buffers.masks.lengths,
        buffers.masks.resets,
        buffers.recurrent_mask,
        buffers.given_or_any,
        tuple(buffers.d_finals) or None,
        buffers.dgates,
        tuple(buffers.d_states0),
    )
    flags = {"GIVEN": buffers.given, "ARE_PREACTIVATIONS": buffers.are_preactivations}
    return _launch(backward_kernel, layer, tile, arguments, flags)


def _launch(kernel: Any, layer: Layer, tile: Tile, tensors: tuple[Any, ...], flags: dict[str, Any]) -> bool:
    arguments = (*tensors, layer.x.shape[0], layer.x.shape[1], int(layer.reverse))
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
    launch = Launcher(kernel, arguments, constants, tile.warps, STAGES)
    dropped = layer.recurrent_mask is not None
    if (dropped or layer.cell.program is not None) and (reason := launch.too_large()) is not None:
        what = f"{layer.cell.name} with recurrent dropout" if dropped else layer.cell.name
        _say_once(what, kernel.__name__.partition("_")[0], units, reason)
        return False
    launch(grid, *arguments)
    return True


@cache
def _say_once(what: str, direction: str, units: int, reason: str) -> None:
    notice(f"{what}, {units} units, {direction}: a launch for each step, since one for all would be slow: {reason}")
