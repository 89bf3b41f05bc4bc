"""Cells that are not built in, by the per-step kernels, beside autograd through the cell's own step.

Their gates' numbers and the blocks' order are such as no built-in cell has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import backends
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.cells import CELLS, Cell, mix, sigmoid, tanh
from tests.cells.zoo import ZOO
from tests.random_layers import Shape

reason = backends.module("triton").ready()
pytestmark = [
    pytest.mark.skipif(reason is not None, reason=f"triton: {reason}"),
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.parametrize("backend", ["triton"]),  # names the backend, and with it the device
]


@fastrnn.cell(gates="nlf")
def backwards(x: Any, u: Any, h: Any) -> Any:
    """The minimal gated unit and a leap: u's gates are no run of blocks, and blocks are more than saved values."""
    f = sigmoid(x.f + u.f)
    return mix(f, tanh(x.n + f * u.n), h) + x.l


OTHERS = [backwards, *(ZOO[name] for name in ("cifg", "mgu", "ligru", "star", "mingru"))]
SHAPES = (Shape(steps=3, heads=2, directions=2), Shape(steps=3), Shape(steps=3, bias=False, reverse=True))


def random_layer(cell: Cell, shape: Shape) -> Layer:
    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=torch.float64) / 2

    rows, head = len(cell.x_gates) * shape.hidden, shape.hidden // shape.heads
    directions, of_h = range(shape.directions), len(cell.u_gates)
    biases = [random(rows) if share == "x" else random(of_h * shape.hidden) for _ in directions for share in "xu"]
    return Layer(
        cell.name,
        random(shape.steps, shape.batch, shape.inputs),
        [random(rows, shape.inputs) for _ in directions],
        [random(shape.heads, of_h * head, head) for _ in directions],
        biases if shape.bias else [],
        [],
        [random(shape.directions, shape.batch, shape.hidden) for _ in cell.states],
        None,
        None,
        shape.reverse,
    )


def by_autograd(layer: Layer) -> tuple[Tensor, list[Tensor]]:
    """The output and the final states."""
    cell, outputs, finals = layer.cell, [], []
    for direction, (w_ih, w_hh) in enumerate(zip(layer.w_ih, layer.w_hh, strict=True)):
        biases = layer.biases[2 * direction : 2 * direction + 2]
        states, ys = tuple(state[direction] for state in layer.states0), []
        for x in reversed(layer.x) if layer.reversed(direction) else layer.x:
            gx = (x @ w_ih.T + (biases[0] if biases else 0)).unflatten(-1, (len(cell.x_gates), -1))
            h = states[0].unflatten(-1, (layer.heads, -1))
            by_gate = w_hh.view(layer.heads, len(cell.u_gates), h.shape[-1], h.shape[-1])
            gh = torch.einsum("bnd,ngud->bgnu", h, by_gate).flatten(2)
            states, _ = cell.step(gx, gh + (biases[1].view(gh.shape[1:]) if biases else 0), states)
            ys.append(states[0])
        outputs.append(torch.stack(ys[::-1] if layer.reversed(direction) else ys))
        finals.append(states)
    return torch.cat(outputs, -1), [torch.stack(group) for group in zip(*finals, strict=True)]


@pytest.mark.parametrize(
    ("cell", "shape"),
    [
        pytest.param(cell, shape, id=f"{cell.name}-{shape}", marks=() if kind == number % 3 else pytest.mark.exhaustive)
        for number, cell in enumerate(OTHERS)
        for kind, shape in enumerate(SHAPES)
    ],
)
def test_a_layer(cell: Cell, shape: Shape, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients from what forward kept, and from recomputed pre-activations."""
    monkeypatch.setitem(CELLS, cell.name, cell)
    layer, module = random_layer(cell, shape), backends.module("triton")
    assert module.supports(layer) is None
    result = module.forward(layer, history=True, gates=True)
    assert bool(result.saved) == bool(cell.saved)
    leaves = [tensor.requires_grad_() for tensor in layer.tensors()]
    output, finals = by_autograd(layer)
    torch.testing.assert_close([result.states[0], *result.finals], [output.detach(), *map(Tensor.detach, finals)])

    arriving = [torch.randn_like(tensor) for tensor in (output, *finals)]
    expected = torch.autograd.grad([output, *finals], leaves, arriving, materialize_grads=True)
    gradients = Gradients([arriving[0]], [*arriving[1:]])
    detached = layer.with_tensors(Tensor.detach)
    for kept in (result.saved, []):
        got = module.backward(detached, Residuals(result.states, kept), gradients)
        torch.testing.assert_close([*got.x, *got.w_ih, *got.w_hh, *got.biases, *got.states0], list(expected))


def test_what_is_not_served(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, module = random_layer(backwards, Shape()), backends.module("triton")
    for name in ("slstm", "indrnn", "zoneout"):
        monkeypatch.setitem(CELLS, name, ZOO[name])
        assert "cells of one or two states, without" in str(module.supports(replace(layer, cell_name=name)))
