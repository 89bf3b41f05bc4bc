"""What vmap does to a layer's tensors: members joined in one batch, called one by one, or given gradients of their own.

Members are what vmap maps over, V of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends import outside, products
from fastrnn.backends.layer import Layer
from fastrnn.cells import Cell
from fastrnn.cells.contract import States

Dims = Sequence[int | None]
"""Where tensors have their members, None where they have none."""

SMALL = 256
"""Sequences times units of a member: see `prefers_one_backward`."""


def folded(members: int, tensors: Sequence[Tensor | None], dims: Dims, batch: Dims) -> list[Tensor | None]:
    """The tensors with all members in one batch, (..., V·B, ...); `batch` says where a member has its own.

    What has no members is repeated for each, and what has no batch is left as it is.
    """

    def fold(tensor: Tensor | None, dim: int | None, place: int | None) -> Tensor | None:
        if tensor is None or place is None:
            return tensor
        if dim is None:
            shape = tensor.shape
            tensor = tensor.unsqueeze(place).expand(*shape[:place], members, *shape[place:])
        else:
            tensor = tensor.movedim(dim, place)
        return tensor.flatten(place, place + 1)

    return [fold(*each) for each in zip(tensors, dims, batch, strict=True)]


def unfolded(members: int, tensors: Sequence[Tensor], batch: Dims) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The other way round, with where the members are: (..., V·B, ...) -> (..., V, B, ...).

    What has no batch, as `batch` says, has its members already, in front.
    """
    each = zip(tensors, batch, strict=True)
    parted = [tensor if place is None else tensor.unflatten(place, (members, -1)) for tensor, place in each]
    return tuple(parted), tuple(place or 0 for place in batch)


def member(index: int, tensors: Sequence[Tensor | None], dims: Dims) -> list[Any]:
    """The tensors of one member."""
    return [
        tensor if tensor is None or dim is None else tensor.select(dim, index)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]


def each(
    function: Callable[..., tuple[Tensor, ...]], members: int, tensors: Sequence[Tensor | None], dims: Dims
) -> tuple[tuple[Tensor, ...], Any]:
    """The results of `function` for one member after the other, stacked, with where the members are: at 0."""
    results = [function(*member(index, tensors, dims)) for index in range(members)]
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def prefers_one_backward(layer: Layer) -> bool:
    """Whether each member's own gradients of the weights come from one backward of all; `layer` is a member's.

    That takes a product with the identity, as large as the gates, and memory for the gates' gradients of all. On the
    CPU, in float32, for 16 or 256 members of 16 to 512 units, it took 0.07 to 1.3 of the time of a backward for each
    where a member has one sequence or `SMALL` units in all, and 0.7 to 2.5 beyond. On a GPU each is several launches.
    """
    if layer.projected or not _told_by_input(layer.cell):
        return False
    batch = layer.x.shape[1]
    return layer.x.device.type != "cpu" or batch == 1 or batch * layer.hidden_size <= SMALL


def _told_by_input(cell: Cell) -> bool:
    """Whether all gradients of weights follow from dgx: each block of dgh is one of dgx, too, or, as the parameters,
    one that the cell computes from these."""
    known = {*cell.outside, *(cell.blocks[place] for place in cell.dgx)}
    return known >= {*(cell.blocks[place] for place in cell.dgh), *cell.parameters}


def cut_before_input(layer: Layer) -> Layer:
    """The same layer behind its input's products, so that its d_x is dgx (T, B, directions·Gx·H).

    The products are the input, (T, B, directions·Gx·H), and the weights are the identity, divided among the directions.
    """
    gx = [products.input_product(layer, direction, layer.state_dtype) for direction in range(layer.directions)]
    x = _side_by_side([part.flatten(2) for part in gx]).to(layer.x.dtype)
    w_ih = list(torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).chunk(layer.directions))
    biases = [b if index % 2 else torch.zeros_like(b) for index, b in enumerate(layer.biases)]
    return replace(layer, x=x, w_ih=w_ih, biases=biases)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def input_gradient(layer: Layer, dgx: Tensor) -> Tensor:
    """d_x (T, B, I) from dgx (T, B, directions·Gx·H)."""
    rows = dgx.to(layer.state_dtype)
    return (rows @ torch.cat(layer.w_ih).to(rows.dtype)).to(layer.x.dtype)


def weight_gradients(
    layer: Layer, x: Tensor, dgx: Tensor, histories: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of w_ih, w_hh, the biases and the cell's parameters of each of V members, whose batches the layer
    joins, (V, ...) each.

    x is (V, T, B, I), zero beyond the lengths, dgx (T, V·B, directions·Gx·H), and the histories are the layer's states
    of every step, (T, V·B, directions·H).
    """
    found = [
        _of_direction(layer, direction, x.to(layer.state_dtype), part.to(layer.state_dtype), histories)
        for direction, part in enumerate(dgx.chunk(layer.directions, -1))
    ]
    w_ih, w_hh, *lists = zip(*found, strict=True)
    each = ([d.to(layer.x.dtype) for d in group] for group in (w_ih, w_hh, *(chain(*of_each) for of_each in lists)))
    return tuple(each)  # type: ignore[return-value]


def _of_direction(
    layer: Layer, direction: int, x: Tensor, dgx: Tensor, histories: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    cell, heads, members = layer.cell, layer.heads, x.shape[0]

    def by_member(rows: Tensor) -> Tensor:
        """(T, V·B, F) -> (V, T·B, F)"""
        steps, sequences, width = rows.shape
        return rows.reshape(steps, members, sequences // members, width).transpose(0, 1).flatten(1, 2)

    from_dgx = cell.adds_shares and not cell.parameters
    needed = histories[:1] if from_dgx else histories
    own = [products.direction_slice(layer, direction, history).to(dgx.dtype) for history in needed]
    before = products.states_before(layer, direction, own)
    named = {} if from_dgx else _blocks(layer, direction, dgx, before)
    dgx_rows, h_rows = by_member(dgx), by_member(products.multiplied(layer, direction, before[0]))
    dgh_rows = dgx_rows
    if not cell.adds_shares:
        dgh_rows = by_member(_side_by_side([named[cell.blocks[place]] for place in cell.dgh] or [dgx[..., :0]]))
    d_w_ih = dgx_rows.mT @ x.flatten(1, 2)
    if heads == 1:
        d_w_hh = (dgh_rows.mT @ h_rows).unsqueeze(1)
    else:
        by_head = dgh_rows.unflatten(-1, (len(cell.u_gates), heads, -1))
        d_w_hh = torch.einsum("vrgnk,vrnd->vngkd", by_head, h_rows.unflatten(-1, (heads, -1))).flatten(2, 3)
    biases = [dgx_rows.sum(1), dgh_rows.sum(1)] if layer.biases else []
    return d_w_ih, d_w_hh, biases, [by_member(named[name]).sum(1) for name in cell.parameters]


def _blocks(layer: Layer, direction: int, dgx: Tensor, before: States) -> dict[str, Tensor]:
    """Those of dgx (T, B, Gx·H) by their names, and what `Cell.outside` names, (T, B, H) each; `before` are the states
    that entered each step.

    What gradients outside the recurrence need is computed again, so that autograd can go through it.
    """
    cell, of_gates = layer.cell, dgx.unflatten(-1, (len(layer.cell.x_gates), -1))
    named = {cell.blocks[place]: of_gates.select(-2, gate) for gate, place in enumerate(cell.dgx)}
    if not cell.outside:
        return named
    gx, gh = products.input_product(layer, direction, dgx.dtype), products.hidden_product(layer, direction, before[0])
    after, saved = cell.step(gx, gh, before, *products.own_values(layer, direction, dgx.dtype))
    # Blocks of the state's share alone are told by those of x, parameters by both: once more for these.
    for _ in range(2 if cell.parameters and len(cell.blocks) > len(cell.dgx) else 1):
        blocks = tuple(named.get(block, before[0]) for block in cell.blocks)
        named |= outside.in_steps(layer, direction, blocks, saved, before, after)
    return named
