"""Cells that are not built in, by the per-step kernels, beside the reference.

Their gates' numbers and the blocks' order are such as no built-in cell has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import fastrnn
from fastrnn import backends
from fastrnn.cells import CELLS, Cell, mix, sigmoid, tanh
from tests.cells.zoo import ZOO
from tests.random_layers import Shape, compute, cotangents, random_layer

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
    layer = random_layer(cell.name, shape)
    assert backends.module("triton").supports(layer) is None
    grads = cotangents(layer)
    truth = compute(layer, torch.float64, "reference", grads)
    for recompute in (False, True):
        torch.testing.assert_close(compute(layer, torch.float64, "triton", grads, recompute), truth)


def test_what_is_not_served(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, module = random_layer("gru", Shape()), backends.module("triton")
    for name in ("slstm", "indrnn", "zoneout_lstm"):
        monkeypatch.setitem(CELLS, name, ZOO[name])
        assert "cells of one or two states, without" in str(module.supports(replace(layer, cell_name=name)))
