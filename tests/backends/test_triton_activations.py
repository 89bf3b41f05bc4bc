"""Sigmoid and tanh of Triton's kernels over a grid, beside float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastrnn import backends

reason = backends.module("triton").ready()
pytestmark = [
    pytest.mark.skipif(reason is not None, reason=f"triton: {reason}"),
    pytest.mark.parametrize("backend", ["triton"]),  # names the backend, and with it the device
]

ULPS = 4
"""Of float32, for tanh, and for sigmoid of what is not far below zero."""
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
