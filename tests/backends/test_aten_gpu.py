"""Torch's kernels on a GPU, through fastrnn: right where cuDNN itself raises or warns (`backends.aten_cuda`)."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fastrnn
from tests.tolerances import DROP_IN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.usefixtures("cudnn"),
]
kinds = pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
T, B, I, H = 7, 3, 5, 8


def make(kind: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """On the GPU and, with the same weights, on the CPU; in float64."""
    there = getattr(fastrnn, kind)(I, H, 2, device="cuda", dtype=torch.float64, backend="aten", **options)
    here = getattr(fastrnn, kind)(I, H, 2, dtype=torch.float64, backend="aten", **options)
    here.load_state_dict(there.state_dict())
    return there, here


def derivatives(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and gradients of the first and the second order."""
    x = x.detach().to(next(module.parameters()).device).requires_grad_()
    arguments = [x, *module.parameters()]
    output = module(x)[0]
    first = torch.autograd.grad(output.pow(2).sum(), arguments, create_graph=True)
    second = torch.autograd.grad(sum(one.pow(2).sum() for one in first), arguments)
    return [one.detach().cpu() for one in (output, *first, *second)]


@kinds
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_derivatives_of_both_orders(kind: str, training: bool) -> None:
    there, here = make(kind, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    for got, wanted in zip(derivatives(there.train(training), x), derivatives(here, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=DROP_IN, atol=DROP_IN)


@kinds
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_nothing_is_warned_of(kind: str, training: bool) -> None:
    there, _ = make(kind)
    x = torch.randn(T, B, I, dtype=torch.float64, device="cuda", requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in (there, copy.deepcopy(there), weight_norm(copy.deepcopy(there), "weight_hh_l0")):
            module.train(training)
            module(x)[0].sum().backward()
        weights = {name: parameter.detach().clone() for name, parameter in there.named_parameters()}
        torch.func.functional_call(there, weights, (x,))


@kinds
def test_states_that_are_not_dense(kind: str) -> None:
    there, _ = make(kind)
    x = torch.randn(T, B, I, dtype=torch.float64, device="cuda")
    scattered = torch.randn(B, 2, H, dtype=torch.float64, device="cuda").transpose(0, 1)
    given = (lambda state: (state, state)) if kind == "LSTM" else (lambda state: state)
    assert torch.equal(there(x, given(scattered))[0], there(x, given(scattered.contiguous()))[0])


@kinds
def test_autocast_keeps_its_dtype(kind: str) -> None:
    module = getattr(fastrnn, kind)(I, H, device="cuda", backend="aten")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert module(torch.randn(T, B, I, device="cuda"))[0].dtype == torch.bfloat16


def test_auto_says_what_it_takes() -> None:
    large = fastrnn.LSTM(8, 2048, device="cuda", dtype=torch.bfloat16)
    small = fastrnn.LSTM(8, 64, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(4, 256, 8, device="cuda", dtype=torch.bfloat16)
    assert fastrnn.explain(large, x).layers == ["aten"]
    assert fastrnn.explain(small, x).layers == ["triton"]
    assert small(x)[0].shape == (4, 256, 64)
    for module in (large, small):
        output = module(x)[0]
        output.float().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
