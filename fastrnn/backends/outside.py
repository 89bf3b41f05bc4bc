"""Gradients outside the recurrence, from those of the blocks: of a cell's parameters and of its steps' inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.backends import products
from fastrnn.backends.layer import Gradients, Layer
from fastrnn.cells import Cell
from fastrnn.cells.contract import States


def by_name(
    cell: Cell,
    blocks: Sequence[Tensor],
    saved: Sequence[Tensor],
    before: Sequence[Tensor | None],
    after: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> dict[str, Tensor]:
    """The gradient of every parameter and input, (..., H) each, and those that are told with them.

    All but the parameters are (..., H): the blocks as `Cell.blocks` names them, what was saved, and the states before
    and after each step, of which those that the derivative does not look at may be None.
    """
    found = dict(zip(cell.blocks, blocks, strict=True))
    if not _are_blocks(cell):
        others = cell.gradients_outside(blocks, saved, before, after, parameters, inputs)
        found |= dict(zip(cell.outside, others, strict=True))
    return found


def gradients(
    layer: Layer, direction: int, blocks: States, saved: States, before: States, after: States
) -> tuple[list[Tensor], list[Tensor]]:
    """Of one direction's parameters, (H,) each, and of the inputs of its steps, (T, B, H) each, in the blocks' dtype;
    arguments as those of `in_steps`."""
    cell, found = layer.cell, dict(zip(layer.cell.blocks, blocks, strict=True))
    if not _are_blocks(cell):
        found |= in_steps(layer, direction, blocks, saved, before, after)
    return [found[name].sum((0, 1)) for name in cell.parameters], [found[name] for name in cell.inputs]


def in_steps(
    layer: Layer, direction: int, blocks: States, saved: States, before: States, after: States
) -> dict[str, Tensor]:
    """What `Cell.outside` names, step by step, in the blocks' dtype: of parameters each step's share.

    All are (T, B, H), as `by_name` has them, the blocks zero at t >= length.
    """
    cell, dtype = layer.cell, blocks[0].dtype
    found = cell.gradients_outside(blocks, saved, before, after, *products.own_values(layer, direction, dtype))
    live = products.live_steps(layer)
    masked = (d if live is None else torch.where(live[..., None], d, 0) for d in found)
    return dict(zip(cell.outside, masked, strict=True))


def of_layer(
    layer: Layer,
    dgates: Tensor,
    saved: Tensor | None,
    histories: list[Tensor],
    grads: Gradients,
) -> tuple[list[Tensor], list[Tensor]]:
    """`Backward.parameters` and `Backward.inputs` of a layer, where they are needed.

    dgates (directions, T, B, W·H) are its blocks side by side, `saved` (directions, T, B, S·H) what its steps saved, or
    None where that is nothing or to be computed again, and the histories (T, B, directions·H) its states after each
    step.
    """
    cell, storage, dtype = layer.cell, layer.x.dtype, layer.state_dtype
    if not (cell.parameters and grads.need_weights) and not (cell.inputs and grads.need_x):
        return [], []
    d_parameters: list[Tensor] = []
    d_inputs: list[list[Tensor]] = []
    for direction in range(layer.directions):
        blocks = dgates[direction].to(dtype).chunk(len(cell.blocks), -1)
        after = tuple(products.direction_slice(layer, direction, history).to(dtype) for history in histories)
        before = products.states_before(layer, direction, after)
        kept: States = ()
        if saved is not None:
            kept = saved[direction].to(dtype).chunk(len(cell.saved), -1)
        elif cell.saved and not _are_blocks(cell):
            kept = products.recomputed_gates(layer, direction, [*after])
        of_parameters, of_inputs = gradients(layer, direction, blocks, kept, before, after)
        d_parameters += [d.to(storage) for d in of_parameters]
        d_inputs.append(of_inputs)
    stacked = [torch.stack(parts).to(storage) for parts in zip(*d_inputs, strict=True)]
    return d_parameters if grads.need_weights else [], stacked if grads.need_x else []


def _are_blocks(cell: Cell) -> bool:
    """Whether the gradients of all parameters and inputs are among the blocks."""
    return {*cell.blocks} >= {*cell.parameters, *cell.inputs}
