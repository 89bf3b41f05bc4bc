"""Repeated calls by a backend for GPUs: the second call is the first one again, by whatever device Triton runs on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.binding import memory
from fastrnn.binding.plans import Bound
from tests.devices import device_of, why_not
from tests.plans import plans_of

BACKEND, DEVICE = "triton", device_of("triton")
"""No parameter names the backend: on a GPU that sets a mode for the device, and under modes no call is remembered."""
pytestmark = [
    pytest.mark.skipif(bool(why_not(BACKEND)), reason=str(why_not(BACKEND))),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]
kinds = pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
OPTIONS: list[dict[str, Any]] = [{}, {"bidirectional": True, "num_layers": 2, "batch_first": True}, {"bias": False}]
INPUT, HIDDEN, STEPS, BATCH = 5, 19, 6, 3


def make(kind: str, options: dict[str, Any], batch: int | None = BATCH) -> tuple[nn.Module, Tensor]:
    module = getattr(fastrnn, kind)(INPUT, HIDDEN, backend=BACKEND, dtype=torch.bfloat16, device=DEVICE, **options)
    sizes = [STEPS] if batch is None else [batch, STEPS] if options.get("batch_first") else [STEPS, batch]
    return module, torch.randn(*sizes, INPUT, dtype=torch.bfloat16, device=DEVICE)


def flat(results: Any) -> list[Tensor]:
    output, finals = results
    return [output, *(finals if isinstance(finals, tuple) else (finals,))]


def everything(module: nn.Module, x: Tensor, hx: Any = None) -> list[Tensor]:
    """Results and gradients."""
    x = x.detach().requires_grad_()
    outputs = flat(module(x, hx))
    loss = sum((index + 1) * output.float().sum() for index, output in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(loss, [x, *module.parameters()])]


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


@kinds
@pytest.mark.parametrize("batch", [None, BATCH])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_gradients(kind: str, options: dict[str, Any], batch: int | None, usual_way: list[str]) -> None:
    module, x = make(kind, options, batch)
    with torch.no_grad():
        first, again = (flat(module(x)) for _ in range(2))
        finals = tuple(again[1:]) if kind == "LSTM" else again[1]
        with_states, usual = flat(module(x, finals)), len(usual_way)
        assert_same(again, first)
        assert type(plans_of(module)[0]) is Bound
        memory.forget(module)
        assert_same(with_states, flat(module(x, finals)))
    assert usual == 1


@kinds
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_gradients(kind: str, options: dict[str, Any], usual_way: list[str]) -> None:
    module, x = make(kind, options)
    first, again = (everything(module, x) for _ in range(2))
    assert len(usual_way) == 1
    assert type(plans_of(module)[0]) is Bound
    assert_same(again, first)


def test_new_values_of_weights_take_effect(usual_way: list[str]) -> None:
    module, x = make("GRU", {})
    with torch.no_grad():
        before = module(x)[0]
        module.weight_hh_l0.mul_(0.5)
        after = module(x)[0]
        assert len(usual_way) == 1
        memory.forget(module)
        assert torch.equal(after, module(x)[0])
    assert not torch.equal(after, before)


def test_what_torch_allows_is_looked_at(usual_way: list[str]) -> None:
    module, x = make("GRU", {})
    module, x = module.float(), x.float()
    with torch.no_grad():
        module(x)
        torch.backends.cudnn.allow_tf32 = True
        module(x)
    assert len(usual_way) == 2


def test_states_without_gradients_of_nothing_are_not_kept() -> None:
    """Where nothing requires gradients, though they are enabled, nothing is kept for them."""
    module, x = make("LSTM", {})
    module.requires_grad_(False)
    for _ in range(2):
        assert not any(result.requires_grad for result in flat(module(x)))
    assert type(plans_of(module)[0]) is Bound


def test_second_derivatives() -> None:
    module, x = make("RNN", {})
    module, x = module.double(), x.double()
    seconds = []
    for _ in range(2):
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(module(x)[0].pow(2).sum(), x, create_graph=True)
        seconds += torch.autograd.grad(first.pow(2).sum(), x)
    assert torch.equal(*seconds)
