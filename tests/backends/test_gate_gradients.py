"""The products around a recurrence that go by a cell's blocks, which may be those of parameters and inputs as well."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastrnn.backends import gate_gradients, outside, products, reference
from fastrnn.backends.layer import Gradients, Layer
from fastrnn.backends.recurrence.backward import _preactivations
from fastrnn.cells import CELLS, Cell
from tests.cells.zoo import ZOO
from tests.random_layers import Shape, any_layer

MASKED = Shape(steps=5, batch=4, hidden=6, directions=2, lengths=True, resets=True)
PLAIN = Shape(steps=5, batch=4, hidden=6, heads=2, reverse=True, bias=False)
shapes = pytest.mark.parametrize("shape", [MASKED, PLAIN], ids=str)
every = pytest.mark.parametrize("cell", (CELLS | ZOO).values(), ids=lambda cell: cell.name)


def random_blocks(layer: Layer) -> Tensor:
    """(directions, T, B, W, H), zero at t >= length."""
    steps, batch, _ = layer.x.shape
    blocks = layer.x.new_empty((layer.directions, steps, batch, len(layer.cell.blocks), layer.hidden_size)).normal_()
    live = products.live_steps(layer)
    return blocks if live is None else torch.where(live[..., None, None], blocks, 0)


@every
@shapes
def test_gradients_of_weights_and_input(cell: Cell, shape: Shape) -> None:
    """As from the gates' gradients alone: those of a product that there is not are empty."""
    layer = any_layer(cell, shape)
    history, blocks = reference.forward(layer, history=True, gates=False).states[0], random_blocks(layer)
    found = gate_gradients.weight_gradients(layer, blocks.flatten(-2), history)
    expected: list[list[Tensor]] = [[], [], []]
    d_x = torch.zeros_like(layer.x)
    for direction in range(layer.directions):
        own = products.direction_slice(layer, direction, history)
        (h_before,) = products.states_before(layer, direction, [own])
        dgx, dgh = (cell.of_gates(blocks[direction], places) for places in (cell.dgx, cell.dgh))
        w_ih, w_hh, biases = products.weight_gradients(layer, dgx, dgh, h_before)
        for group, more in zip(expected, ([w_ih], [w_hh], biases), strict=True):
            group += more
        d_x += dgx.flatten(2) @ layer.w_ih[direction]
    torch.testing.assert_close([*found], expected)
    torch.testing.assert_close(gate_gradients.input_gradient(layer, blocks.flatten(-2)), d_x)


@every
@shapes
def test_preactivations(cell: Cell, shape: Shape) -> None:
    layer = any_layer(cell, shape)
    history = reference.forward(layer, history=True, gates=False).states[0]
    pre = _preactivations(layer, history).unflatten(-1, (len(cell.blocks), -1))
    for direction in range(layer.directions):
        (h_before,) = products.states_before(layer, direction, [products.direction_slice(layer, direction, history)])
        gx = products.input_product(layer, direction, torch.float64)
        gh = products.hidden_product(layer, direction, h_before)
        expected = gx.new_zeros((*gx.shape[:2], gate_gradients.gate_blocks(cell), layer.hidden_size))
        for places, shares in ((cell.dgx, gx), (cell.dgh, gh)):
            for place, share in zip(places, shares.unbind(-2), strict=True):
                expected[..., place, :] += share
        live = slice(None) if (mask := products.live_steps(layer)) is None else mask
        torch.testing.assert_close(pre[direction, ..., : expected.shape[-2], :][live], expected[live])


@pytest.mark.parametrize("name", [name for name, cell in ZOO.items() if cell.parameters or cell.inputs])
def test_gradients_of_parameters_and_inputs(name: str) -> None:
    """From recomputed values as from saved ones, and only where they are asked for."""
    layer = any_layer(ZOO[name], MASKED)
    result, blocks = reference.forward(layer, history=True, gates=True), random_blocks(layer).flatten(-2)
    saved = result.saved[0] if result.saved else None
    grads = Gradients([None], [None])
    expected = outside.of_layer(layer, blocks, saved, result.states, grads)
    assert [len(group) for group in expected] == [len(layer.parameters), len(layer.inputs)]
    torch.testing.assert_close(outside.of_layer(layer, blocks, None, result.states, grads), expected)
    only = outside.of_layer(layer, blocks, saved, result.states, replace(grads, need_x=False))
    torch.testing.assert_close(only, (expected[0], []))
    only = outside.of_layer(layer, blocks, saved, result.states, replace(grads, need_weights=False))
    torch.testing.assert_close(only, ([], expected[1]))
