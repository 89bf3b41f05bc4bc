"""The functions of Triton's kernels over a grid, beside float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastrnn import backends
from fastrnn.cells import functions as cells

reason = backends.module("triton").ready()
pytestmark = [
    pytest.mark.skipif(reason is not None, reason=f"triton: {reason}"),
    pytest.mark.parametrize("backend", ["triton"]),  # names the backend, and with it the device
]

ULPS = 4
"""For tanh, and for sigmoid of what is not far below zero, in float32; for the other functions in both."""
SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0]


def activated(x: Tensor, approximate: bool = False) -> tuple[Tensor, Tensor]:
    """sigmoid and tanh of x (n,), n a multiple of 1024, by one launch."""
    from tests.backends.triton_activations import activations_kernel

    sigmoid, tanh = torch.empty_like(x), torch.empty_like(x)
    activations_kernel[(x.numel() // 1024,)](x, sigmoid, tanh, APPROXIMATE=approximate)
    return sigmoid, tanh


def grid(dtype: torch.dtype) -> Tensor:
    near = torch.linspace(-1, 1, 2048, dtype=torch.float64)
    wide = torch.linspace(-90, 90, 2048, dtype=torch.float64)
    tiny = torch.logspace(-30, -1, 1024, dtype=torch.float64)
    return torch.cat((near, wide, tiny)).to(dtype)


def test_float32(backend: str) -> None:
    x = grid(torch.float32)
    sigmoid, tanh = activated(x)
    unit = torch.finfo(torch.float32).eps / 2
    truth = x.double().tanh()
    assert ((tanh.double() - truth).abs() <= ULPS * 2 * unit * truth.abs()).all()
    truth = x.double().sigmoid()
    allowed = (ULPS + x.double().clamp(max=0).abs()) * 2 * unit * truth + torch.finfo(torch.float32).tiny
    assert ((sigmoid.double() - truth).abs() <= allowed).all()


def test_float64(backend: str) -> None:
    x = grid(torch.float64)
    sigmoid, tanh = activated(x)
    torch.testing.assert_close(tanh, x.tanh(), rtol=4e-15, atol=0)
    torch.testing.assert_close(sigmoid, x.sigmoid(), rtol=1e-13, atol=1e-300)


def test_one_instruction_for_16_bit(backend: str) -> None:
    """A relative error of 2⁻¹¹, an absolute one of 2⁻¹² in sigmoid; the interpreter has the exact functions."""
    x = grid(torch.float32)
    sigmoid, tanh = activated(x, approximate=True)
    truth = x.double().tanh()
    assert ((tanh.double() - truth).abs() <= 2.0**-10.9 * truth.abs() + 1e-30).all()
    assert ((sigmoid.double() - x.double().sigmoid()).abs() <= 2.0**-11.9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_special_values(dtype: torch.dtype, backend: str) -> None:
    x = torch.zeros(1024, dtype=dtype)
    x[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=dtype)
    sigmoid, tanh = activated(x)
    torch.testing.assert_close(tanh, x.tanh(), equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(sigmoid, x.sigmoid(), equal_nan=True, rtol=0, atol=0)


NAMES = ("exp", "log", "softplus", "sqrt", "maximum", "minimum")


def functions(x: Tensor, y: Tensor, approximate: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """Each function of x, or of x and y, or of 0.1 and y, (n,), n a multiple of 1024; and what it is in float64."""
    from tests.backends.triton_activations import functions_kernel

    results = [torch.empty_like(x) for _ in NAMES]
    functions_kernel[(x.numel() // 1024,)](x, y, *results, APPROXIMATE=approximate)
    wide, other = x.double(), y.double()
    truth = (wide.exp(), wide.log(), cells.softplus(wide), wide.sqrt(), wide.maximum(other), other.clamp(max=0.1))
    return dict(zip(NAMES, zip(results, truth, strict=True), strict=True))


def positive(dtype: torch.dtype) -> Tensor:
    return torch.cat((torch.linspace(0.5, 2, 1024), torch.logspace(-37, 37, 1024))).to(dtype)


def relative_error(got: Tensor, truth: Tensor, scale: Tensor | float = 1) -> float:
    """The largest, of what is a number that the dtype holds."""
    known = truth.isfinite() & (truth.abs() < torch.finfo(got.dtype).max)
    return ((got - truth).abs() / (scale * truth.abs()).clamp(min=torch.finfo(got.dtype).tiny))[known].max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_functions(dtype: torch.dtype, backend: str) -> None:
    """To some units in the last place of the result, however small: of log near 1, of softplus far below 0."""
    x = torch.cat((torch.linspace(-86, 86, 4096, dtype=torch.float64).to(dtype), positive(dtype)))
    for name, (got, truth) in functions(x, torch.ones_like(x)).items():
        assert relative_error(got, truth) <= ULPS * torch.finfo(dtype).eps, name


def test_other_functions_for_16_bit(backend: str) -> None:
    x = torch.cat((torch.linspace(-20, 20, 1024), positive(torch.float32)[1024:]))
    got = functions(x, torch.ones_like(x), approximate=True)
    assert relative_error(*got["exp"], 1 + x.abs()) <= 2.0**-21
    assert relative_error(*got["softplus"], 1 + x.abs()) <= 2.0**-21
    assert relative_error(*got["log"], 1 + 1 / x.double().log().abs()) <= 2.0**-21


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_special_values_of_other_functions(dtype: torch.dtype, backend: str) -> None:
    x, y = torch.zeros(2, 1024, dtype=dtype)
    x[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=dtype)
    y[1] = torch.nan
    for name, (got, truth) in functions(x, y).items():
        torch.testing.assert_close(got, truth.to(dtype), equal_nan=True, rtol=2e-7, atol=0, msg=name)
