"""Way 5: a cell without a product of its state, all steps in one launch, or in two as a scan over chunks of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fastrnn.backends.layer import Layer
from fastrnn.backends.recurrence.buffers import BackwardBuffers, ForwardBuffers
from fastrnn.backends.triton import scan
from fastrnn.backends.triton.configurations import STAGES
from fastrnn.backends.triton.constants import cell_constants
from fastrnn.backends.triton.kernels.pointwise import backward_kernel, forward_kernel
from fastrnn.backends.triton.launch import Launcher
from fastrnn.backends.triton.steps import tile_of
from fastrnn.cells.compiler import linearity
from fastrnn.cells.compiler.linearity import Linear
from fastrnn.cells.compiler.program import Program

Arguments = Callable[["Tensor | None"], tuple[Any, ...]]
"""A kernel's tensors, given the summaries of a scan."""


def forward(layer: Layer, buffers: ForwardBuffers) -> None:
    """Fills histories, gates and finals."""
    program = _program(layer)
    linear = linearity.forward(program)
    moved = [buffers.gx, *buffers.inputs, *buffers.histories, buffers.gates]
    chunk = scan.chunk_steps(layer, linear, _bytes(layer, moved))

    def arguments(summaries: Tensor | None) -> tuple[Any, ...]:
        return (
            buffers.gx,
            buffers.parameters,
            tuple(buffers.inputs) or None,
            buffers.masks.lengths,
            buffers.masks.resets,
            tuple(buffers.states0),
            summaries,
            tuple(buffers.histories),
            buffers.gates,
            tuple(buffers.finals),
        )

    flags = {"CARRIED": () if linear is None else tuple(map(program.states.index, linear.states))}
    _launch(forward_kernel, layer, arguments, linear, chunk, flags)


def backward(layer: Layer, buffers: BackwardBuffers) -> None:
    """Fills dgates and d_states0.

    Gradients take the place of recomputed preactivations, as `ways.py` says, but not in a scan: there a program may
    read preactivations of another one's steps. Nor do they where a program is several warps.
    """
    linear = linearity.backward(_program(layer))
    reads = {*layer.cell.reads_before, *layer.cell.reads_after}
    moved = [history for state, history in zip(layer.cell.states, buffers.histories, strict=True) if state in reads]
    moved_bytes = _bytes(layer, [*moved, *buffers.d_histories, *buffers.inputs, buffers.gates])
    moved_bytes += len(layer.cell.blocks) * layer.x.element_size()
    chunk = scan.chunk_steps(layer, linear, moved_bytes)
    buffers.replaces_preactivations = chunk is None and tile_of(layer)[2] == 1

    def arguments(summaries: Tensor | None) -> tuple[Any, ...]:
        return (
            tuple(buffers.histories),
            buffers.gates,
            tuple(buffers.states0),
            buffers.parameters,
            tuple(buffers.inputs) or None,
            buffers.masks.lengths,
            buffers.masks.resets,
            buffers.given_or_any,
            tuple(buffers.d_finals) or None,
            summaries,
            buffers.dgates,
            tuple(buffers.d_states0),
        )

    flags = {"GIVEN": buffers.given, "ARE_PREACTIVATIONS": buffers.are_preactivations}
    _launch(backward_kernel, layer, arguments, linear, chunk, flags)


def _program(layer: Layer) -> Program:
    program = layer.cell.program
    assert program is not None, "of the built-in cells every one has a product"
    return program


def _bytes(layer: Layer, tensors: Sequence[Tensor | None]) -> int:
    """How many of these, which are of all steps, one unit of one sequence has in one step."""
    steps, batch, _ = layer.x.shape
    values = steps * batch * layer.hidden_size * layer.directions
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) // values


def _launch(
    kernel: Any, layer: Layer, arguments: Arguments, linear: Linear | None, chunk: int | None, flags: dict[str, Any]
) -> None:
    """Once, or in chunks of so many steps: their summaries, then their steps."""
    steps, batch, _ = layer.x.shape
    rows, across, warps = tile_of(layer)
    tiles = -(-batch // rows) * -(-layer.hidden_size // across)
    constants = cell_constants(layer) | scan.constants(linear) | flags
    constants |= {"D": layer.hidden_size, "ROWS": rows, "UNITS": across}

    def launch(summaries: Tensor | None, chunks: int, summarizes: bool) -> None:
        given = (*arguments(summaries), steps, batch, int(layer.reverse), chunk or steps)

        def compiled(stages: int) -> Launcher:
            return Launcher(kernel, given, constants | {"STAGES": stages, "SUMMARIZES": summarizes}, warps, stages)

        launcher = compiled(STAGES)
        if layer.cell.over_units and launcher.too_large():
            launcher = compiled(1)  # of whole rows shared memory may not hold what is fetched ahead
        launcher((tiles, chunks, layer.directions), *given)

    if chunk is None or linear is None:
        launch(None, 1, False)
        return
    chunks = -(-steps // chunk)
    shape = (scan.values_of_summary(linear), layer.directions, chunks - 1, batch, layer.hidden_size)
    summaries = layer.x.new_empty(shape, dtype=layer.state_dtype)
    launch(summaries, chunks - 1, True)
    launch(summaries, chunks, False)
