"""Sigmoid and tanh over vectors: a few ulp from the truth, NaN passes, large arguments saturate.

Both come from exp(x) - 1, where exp(x) = 2**n (1 + e) with n = round(x / ln 2) and e = exp(r) - 1 for the rest
r = x - n ln 2, |r| <= ln 2 / 2, by a polynomial. ln 2 is split in two so that n times its first part is exact (Cody and
Waite, 1980).
"""

from __future__ import annotations

from math import factorial
from typing import Any

from fastrnn.backends.numba.kernels.inner import forced
from fastrnn.backends.numba.kernels.series import ROUNDER, constant, polynomial, power_of_two
from fastrnn.backends.numba.kernels.simd import at_least, at_most, fma, magnitude, reciprocal, where_le, with_sign_of

_LOG2_E = constant({32: 1.4426950408889634, 64: 1.4426950408889634})
rounder = constant(ROUNDER)
_MINUS_LN2_HIGH = constant({32: -0.693359375, 64: -6.93147180369123816490e-01})
_MINUS_LN2_LOW = constant({32: 2.12194440054690583e-4, 64: -1.90821492927058770002e-10})
_expm1_tail = polynomial(
    {
        32: (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5),
        64: tuple(1 / factorial(power) for power in range(13, 1, -1)),
    }
)
"""(exp(r) - 1 - r) / r**2: Cephes' polynomial for float32; Taylor's for float64, whose next term is below 2e-17."""
_SIGMOID_BOUND = constant({32: 87.0, 64: 708.0})
"""Up to here exp(x) and its reciprocal are normal numbers."""
_TANH_BOUND = constant({32: 10.0, 64: 20.0})
"""From here on tanh rounds to 1."""


@forced
def exp_parts(x: Any) -> Any:
    """x -> n + ROUNDER and e, such that exp(x) = 2**n (1 + e)."""
    shifted = fma(x, _LOG2_E(x), rounder(x))
    n = shifted - rounder(x)
    r = fma(n, _MINUS_LN2_LOW(x), fma(n, _MINUS_LN2_HIGH(x), x))
    return shifted, fma(r * r, _expm1_tail(r), r)


@forced
def sigmoid(x: Any) -> Any:
    x = at_least(at_most(x, _SIGMOID_BOUND(x)), 0.0 - _SIGMOID_BOUND(x))
    shifted, e = exp_parts(0.0 - x)
    power = power_of_two(shifted)
    return reciprocal(1.0 + fma(power, e, power))


@forced
def tanh(x: Any) -> Any:
    """With m = exp(2 |x|) - 1: m / (m + 2), and 1 - 2 / (m + 2) where that is nearer to 1 than to 0, for there what
    matters downstream is 1 - tanh²."""
    size = at_most(magnitude(x), _TANH_BOUND(x))
    shifted, e = exp_parts(size + size)
    power = power_of_two(shifted)
    m = fma(power, e, power - 1.0)
    y = reciprocal(m + 2.0)
    return with_sign_of(x, where_le(m, 2.0, m * y, fma(-2.0, y, 1.0)))
