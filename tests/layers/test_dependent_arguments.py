"""Gradients where one argument was computed from another, as everywhere a state is carried: all orders."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from tests.tolerances import DROP_IN
from tests.torch_parity import operator_backends

Loss = Callable[[ModuleType, Tensor], tuple[nn.Module, Tensor]]


def made(library: ModuleType, name: str, *sizes: int) -> Any:
    torch.manual_seed(0)
    return getattr(library, name)(*sizes, dtype=torch.float64)


def unrolled_cell(library: ModuleType, x: Tensor) -> tuple[nn.Module, Tensor]:
    cell = made(library, "GRUCell", 3, 4)
    h = None
    for step in x:
        h = cell(step, h)
    return cell, h.square().sum()


def chunks_with_carried_state(library: ModuleType, x: Tensor) -> tuple[nn.Module, Tensor]:
    lstm = made(library, "LSTM", 3, 4)
    first, state = lstm(x[:2])
    second, _ = lstm(x[2:], state)
    return lstm, (first.sum() * second).square().sum()


def state_made_from_the_input(library: ModuleType, x: Tensor) -> tuple[nn.Module, Tensor]:
    rnn = made(library, "RNN", 3, 3)
    return rnn, rnn(x, x[:1].sin())[0].square().sum()


def tied_weights(library: ModuleType, x: Tensor) -> tuple[nn.Module, Tensor]:
    gru = made(library, "GRU", 3, 3)
    gru.weight_hh_l0 = gru.weight_ih_l0
    return gru, gru(x)[0].square().sum()


LOSSES = [unrolled_cell, chunks_with_carried_state, state_made_from_the_input, tied_weights]


def gradients(library: ModuleType, loss: Loss, order: int) -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    module, value = loss(library, x)
    wanted = [x, *module.parameters()]
    results = list(torch.autograd.grad(value, wanted, create_graph=True))
    if order == 2:
        results = list(torch.autograd.grad(sum(g.square().sum() for g in results), wanted))
    return results


@pytest.mark.parametrize("order", [1, 2])
@operator_backends
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_gradients_are_torchs(loss: Loss, backend: str, order: int) -> None:
    expected = gradients(nn, loss, order)
    with fastrnn.use_backend(backend):
        for got, want in zip(gradients(fastrnn, loss, order), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=DROP_IN, atol=DROP_IN)
