"""The functions of cells, of a tile in the tile's dtype; NaN passes all of them.

`APPROXIMATE` is for 16-bit storage: tanh is one instruction, tanh.approx, with a relative error of 2⁻¹¹, half a unit in
the last place of float16, and exp and log are what the GPU has, where float32 is exact to 2⁻²² of 1 + |x| and of
1 + |log x|. Otherwise tanh is within 2 ulp in float32 and 1e-15 in float64, exp, log and softplus within 4 ulp, and
sigmoid as exact as a GPU's exp(-x), whose argument it rounds in float32: about |x| / 2 ulp for negative x.
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

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2_HIGH = tl.constexpr(0.693359375)
"""ln 2 in so few bits that a multiple by up to 2¹⁵ is exact in float32."""
_LN2_LOW = tl.constexpr(-2.1219444005469057e-4)
"""What is left of it."""
_LARGEST_EXP = tl.constexpr(87.0)
"""Of this, either sign, exp is a normal number in float32."""
_SMALLEST_NORMAL = tl.constexpr(1.17549435e-38)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)


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
def exp(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE or x.dtype == tl.float64:
        return tl.exp(x)
    else:
        # exp(x) = 2ᵏ exp(r), |r| < 0.35: what the instruction makes of r is exact enough.
        k = tl.floor(x * _LOG2_E + 0.5)
        r = (x - k * _LN2_HIGH) - k * _LN2_LOW
        power = ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        return tl.where(tl.abs(x) <= _LARGEST_EXP, tl.exp(r) * power, tl.exp(x))


@triton.jit
def log(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE or x.dtype == tl.float64:
        return tl.log(x)
    else:
        # x = 2ᵏ m with m in [√½, √2): near 1 the instruction is exact to 2⁻²² of 1, not of the logarithm.
        bits = x.to(tl.int32, bitcast=True)
        k = (bits - _SQRT_HALF_BITS) >> 23
        m = (bits - (k << 23)).to(tl.float32, bitcast=True)
        k = k.to(tl.float32)
        exact = k * _LN2_HIGH + (k * _LN2_LOW + _twice_artanh((m - 1.0) / (m + 1.0)))
        return tl.where((x >= _SMALLEST_NORMAL) & (x <= _LARGEST), exact, tl.log(x))


@triton.jit
def softplus(x, APPROXIMATE: tl.constexpr):
    # log(1 + e) is the series of e / (2 + e): a logarithm of the sum would lose what a small e adds to 1.
    e = exp(-tl.abs(x), APPROXIMATE)
    return tl.where(x <= 0.0, 0.0, x) + _twice_artanh(e / (2.0 + e))


@triton.jit
def sqrt(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def maximum(a, b):
    return tl.where((a >= b) | (a != a), a, b)


@triton.jit
def minimum(a, b):
    return tl.where((a <= b) | (a != a), a, b)


@triton.jit
def squared_distance(x, middle):
    distance = x - middle
    return distance * distance


@triton.jit
def _twice_artanh(s):
    """2 artanh(s) = log((1 + s) / (1 - s)), |s| <= 1/3, by its series."""
    TERMS: tl.constexpr = 16 if s.dtype == tl.float64 else 7
    z = s * s
    p = tl.zeros_like(s)
    for power in tl.static_range(TERMS):
        p = p * z + 2.0 / (2 * (TERMS - power) + 1)
    return 2.0 * s + s * z * p


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
