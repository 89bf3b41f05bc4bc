"""Sigmoid and tanh of a tile, in the tile's dtype.

`APPROXIMATE` is for 16-bit storage: one instruction, tanh.approx, with a relative error of 2⁻¹¹, half a unit in the
last place of float16. Otherwise tanh is within 2 ulp in float32 and 1e-15 in float64, and sigmoid as exact as exp(-x),
whose argument a GPU rounds in float32: about |x| / 2 ulp for negative x. NaN passes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.interpreter import INTERPRETED

_HAS_TANH_INSTRUCTION = tl.constexpr(not INTERPRETED)
"""The interpreter runs no inline assembly."""

_SMALL = tl.constexpr(0.625)
"""Below it 1 - 2 / (exp(2x) + 1) would lose more than a bit to cancellation, and a polynomial takes its place."""
_SMALL_DOUBLE = tl.constexpr(0.1)
"""As `_SMALL`, for the terms of the series up to x¹³."""


@triton.jit
def sigmoid(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE and _HAS_TANH_INSTRUCTION:
        return 0.5 * _tanh_instruction(0.5 * x) + 0.5
    else:
        return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE and _HAS_TANH_INSTRUCTION:
        return _tanh_instruction(x)
    else:
        return _tanh(x)


@triton.jit
def relu(x):
    return tl.where(x <= 0.0, 0.0, x)


@triton.jit
def _tanh_instruction(x):
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _tanh(x):
    size = tl.abs(x)
    large = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    z = x * x
    if x.dtype == tl.float64:
        # The Taylor series of (tanh(x) / x - 1) / x².
        p = 929569.0 / 638512875.0 * z - 21844.0 / 6081075.0
        p = ((((p * z + 1382.0 / 155925.0) * z - 62.0 / 2835.0) * z + 17.0 / 315.0) * z - 2.0 / 15.0) * z + 1.0 / 3.0
        return tl.where(size < _SMALL_DOUBLE, x - x * z * p, tl.where(x < 0.0, -large, large))
    else:
        # Interpolates the same function at the Chebyshev nodes of [0, 0.625²].
        p = -6.09671418e-3 * z + 2.09971797e-2
        p = ((p * z - 5.38509078e-2) * z + 1.33327693e-1) * z - 3.33333284e-1
        return tl.where(size < _SMALL, x + x * z * p, tl.where(x < 0.0, -large, large))
