"""The cells' written derivatives against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastrnn
from fastrnn.cells import CELLS, Cell, where


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("cell", CELLS.values(), ids=lambda cell: cell.name)
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["ordinary", "saturated"])
def test_step_backward_is_the_derivative_of_step(cell: Cell, scale: float) -> None:
    gates, batch, hidden = len(cell.gates), 3, 5
    gx, gh = random(batch, gates, hidden), random(batch, gates, hidden)
    before = tuple(random(batch, hidden) for _ in cell.states)
    after, saved = cell.step(gx * scale, gh * scale, before)
    d_after = tuple(torch.randn_like(state) for state in after)

    expected = torch.autograd.grad(after, (gx, gh, *before), d_after, materialize_grads=True)
    blocks, d_before = cell.step_backward(d_after, saved, before, after)
    dgx, dgh = (cell.of_gates(torch.stack(blocks, -2), places) for places in (cell.dgx, cell.dgh))

    torch.testing.assert_close(dgx * scale, expected[0])
    torch.testing.assert_close(dgh * scale, expected[1])
    for got, want in zip(d_before, expected[2:], strict=True):
        torch.testing.assert_close(got, want)


def test_relus_derivative_at_nan_is_torchs() -> None:
    gx, zeros, d_after = (
        torch.tensor([[[torch.nan, -1.0, 0.0, 2.0]]], requires_grad=True),
        torch.zeros(1, 1, 4),
        (torch.full((1, 4), 3.0),),
    )
    cell, before = CELLS["rnn_relu"], (zeros[:, 0],)
    after, saved = cell.step(gx, zeros, before)
    (expected,) = torch.autograd.grad(after, gx, d_after)
    torch.testing.assert_close(cell.step_backward(d_after, saved, before, after)[0][0], expected[:, 0])


@pytest.mark.parametrize("cell", CELLS.values(), ids=lambda cell: cell.name)
def test_a_step_returns_what_its_spec_names(cell: Cell) -> None:
    gx = random(2, len(cell.gates), 3)
    after, saved = cell.step(gx, gx, tuple(random(2, 3) for _ in cell.states))
    assert len(after) == len(cell.states)
    assert len(saved) == len(cell.saved)
    assert all(tensor.shape == (2, 3) for tensor in (*after, *saved))


@fastrnn.cell
def halved(x: Any, h: Any) -> Any:
    return 0.5**0.5 * h + where(x.a <= 1, 0.1, 0.2)


def test_constants_keep_all_digits() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    assert halved.step(one, None, (one[0],))[0][0].item() == 0.5**0.5 + 0.1
