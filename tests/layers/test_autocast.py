"""Mixed precision: autocast of the backend's device, and modules that are themselves of a 16 bit dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from tests.tolerances import ROUNDS_PRODUCTS, relative_error
from tests.torch_parity import (
    BATCH,
    INPUT,
    TIME,
    initial_state,
    layers,
    modules,
    operator_backends,
    pair,
    random,
    tensors,
)

HALF_DTYPES = [torch.bfloat16, torch.float16]
half_dtypes = pytest.mark.parametrize("dtype", HALF_DTYPES, ids=["bfloat16", "float16"])

EPSILONS_APART = 4
"""Rounding x, hx and the weights to 16 bits once each, and the results once more, moves results by less than this many
epsilons of the 16 bit dtype: five steps of a contracting recurrence do not enlarge it."""


def autocast(dtype: torch.dtype, enabled: bool = True) -> torch.autocast:
    """Of the device on which the test creates its tensors."""
    return torch.autocast(torch.get_default_device().type, dtype, enabled)


def sample(kind: str, module: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Any]:
    rows = [BATCH] if kind.endswith("CELL") else [TIME, BATCH]
    return random(*rows, INPUT, dtype=dtype), initial_state(kind, module)


def float32_pair(kind: str, backend: str | None = None, **options: Any) -> nn.Module:
    return pair(kind, backend=backend, dtype=torch.float32, **options)[0]


def assert_near(results: Any, expected: Any, dtype: torch.dtype) -> None:
    tolerance = EPSILONS_APART * torch.finfo(dtype).eps
    for got, truth in zip(tensors(results), tensors(expected), strict=True):
        assert relative_error(got, truth) <= tolerance


def may_turn_over(kind: str, backend: str) -> bool:
    """Whether rounding to 16 bits may move a relu across its kink, which changes one of a few dozen derivatives."""
    return kind.startswith("RNN_RELU") and backend in ROUNDS_PRODUCTS


def step(module: nn.Module, arguments: Any) -> tuple[Any, list[Tensor]]:
    """The results, and the parameters' gradients of their sum."""
    results = module(*arguments)
    loss = sum(tensor.float().sum() for tensor in tensors(results))
    return results, list(torch.autograd.grad(loss, list(module.parameters())))


@operator_backends
@modules
@half_dtypes
def test_autocast_gives_its_dtype_near_float32(backend: str, kind: str, dtype: torch.dtype) -> None:
    module = float32_pair(kind, backend)
    arguments = sample(kind, module)
    expected, expected_gradients = step(module, arguments)
    with autocast(dtype):
        results, gradients = step(module, arguments)
    assert {result.dtype for result in tensors(results)} == {dtype}
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert_near(results, expected, dtype)
    if not may_turn_over(kind, backend):
        assert_near(gradients, expected_gradients, dtype)


@modules
@half_dtypes
def test_autocast_gives_its_dtype_with_torchs_kernels(kind: str, dtype: torch.dtype) -> None:
    """How near they come to float32 is torch's affair: they round the states of each step."""
    module = float32_pair(kind, "aten")
    with autocast(dtype):
        results, gradients = step(module, sample(kind, module))
    assert {result.dtype for result in tensors(results)} == {dtype}
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@operator_backends
@layers
def test_autocast_over_a_stack(backend: str, kind: str) -> None:
    module = float32_pair(kind, backend, num_layers=2, bidirectional=True)
    arguments = sample(kind, module)
    expected, expected_gradients = step(module, arguments)
    with autocast(torch.bfloat16):
        results, gradients = step(module, arguments)
    assert {result.dtype for result in tensors(results)} == {torch.bfloat16}
    assert_near(results, expected, torch.bfloat16)
    assert_near(gradients, expected_gradients, torch.bfloat16)


@operator_backends
@layers
def test_autocast_with_lengths_and_packed_sequences(backend: str, kind: str) -> None:
    module = float32_pair(kind, backend)
    x, lengths = random(TIME, BATCH, INPUT, dtype=torch.float32), torch.tensor([2, 5, 3])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    with autocast(torch.bfloat16):
        output, _ = module(x, lengths=lengths)
        packed_output, _ = module(packed)
    assert packed_output.data.dtype == torch.bfloat16
    assert torch.equal(nn.utils.rnn.pad_packed_sequence(packed_output)[0], output)


@modules
def test_autocast_takes_what_an_autocast_layer_gave(kind: str) -> None:
    """Input and state in bfloat16, parameters in float32: what follows a linear layer, or the call before."""
    module = float32_pair(kind)
    x, hx = sample(kind, module)
    with autocast(torch.bfloat16):
        expected = module(x, hx)
        half = tuple(h.bfloat16() for h in hx) if isinstance(hx, tuple) else hx.bfloat16()
        results = module(x.bfloat16(), half)
    assert all(torch.equal(a, b) for a, b in zip(tensors(results), tensors(expected), strict=True))


@modules
def test_backward_outside_autocast_gives_the_same_gradients(kind: str) -> None:
    module = float32_pair(kind)
    arguments = sample(kind, module)
    with autocast(torch.bfloat16):
        _, expected = step(module, arguments)
        results = module(*arguments)
    loss = sum(tensor.float().sum() for tensor in tensors(results))
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@modules
def test_backward_within_autocast_is_not_changed_by_it(kind: str) -> None:
    module = float32_pair(kind, "numba")
    loss = sum(tensor.square().sum() for tensor in tensors(module(*sample(kind, module))))
    parameters = list(module.parameters())
    expected = torch.autograd.grad(loss, parameters, create_graph=True)
    with autocast(torch.bfloat16):
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@modules
def test_disabled_autocast_changes_nothing(kind: str) -> None:
    module = float32_pair(kind)
    arguments = sample(kind, module)
    with autocast(torch.bfloat16), autocast(torch.bfloat16, enabled=False):
        results = module(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(tensors(results), tensors(module(*arguments)), strict=True))


@modules
def test_autocast_of_another_device_changes_nothing(kind: str) -> None:
    module = float32_pair(kind)
    with torch.autocast("xpu", torch.bfloat16, enabled=torch.xpu.is_available()):
        assert {result.dtype for result in tensors(module(*sample(kind, module)))} == {torch.float32}


def test_autocast_converts_no_float64_state() -> None:
    gru, hx = fastrnn.GRU(INPUT, 6), torch.zeros(1, BATCH, 6, dtype=torch.float64)
    with autocast(torch.bfloat16), pytest.raises(RuntimeError, match=r"hidden tensors must have the same dtype"):
        gru(torch.randn(TIME, BATCH, INPUT), hx)


def test_autocast_within_a_model() -> None:
    linear, gru = nn.Linear(INPUT, INPUT), fastrnn.GRU(INPUT, 6)
    with autocast(torch.bfloat16):
        output, _ = gru(linear(torch.randn(TIME, BATCH, INPUT)))
    output.float().square().sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32


@operator_backends
@modules
@half_dtypes
def test_half_modules_are_near_float32(backend: str, kind: str, dtype: torch.dtype) -> None:
    module = float32_pair(kind, backend).to(dtype)
    x, hx = sample(kind, module, dtype)
    wide = float32_pair(kind, "reference")
    wide.load_state_dict(module.state_dict())
    wide_hx = tuple(h.float() for h in hx) if isinstance(hx, tuple) else hx.float()
    expected, expected_gradients = step(wide, (x.float(), wide_hx))
    results, gradients = step(module, (x, hx))
    assert {tensor.dtype for tensor in (*tensors(results), *gradients)} == {dtype}
    assert_near(results, expected, dtype)
    if not may_turn_over(kind, backend):
        assert_near(gradients, expected_gradients, dtype)
