"""The functions of cells over vectors that no built-in cell needs: a few ulp from the truth, NaN passes.

They overflow to infinity where their values do, and take and give subnormal numbers.
"""

from __future__ import annotations

from math import inf, nan
from typing import Any

from fastrnn.backends.numba.kernels.activations import exp_parts, rounder
from fastrnn.backends.numba.kernels.inner import forced
from fastrnn.backends.numba.kernels.series import by_exponent, constant, polynomial, power_of_two
from fastrnn.backends.numba.kernels.simd import at_least, at_most, fma, magnitude, where_le, where_lt

_EXP_LARGEST = constant({32: 89.0, 64: 710.0})
_EXP_SMALLEST = constant({32: -104.0, 64: -746.0})
"""Beyond, exp is infinite and zero."""
_LEAST_NORMAL = constant({32: 2.0**-126, 64: 2.0**-1022})
_TO_NORMAL = constant({32: 2.0**25, 64: 2.0**54})
_TO_NORMAL_LOG2 = constant({32: 25.0, 64: 54.0})
_LN2_HIGH = constant({32: 6.9313812256e-01, 64: 6.93147180369123816490e-01})
_LN2_LOW = constant({32: 9.0580006145e-06, 64: 1.90821492927058770002e-10})
"""Their sum is ln 2; an exponent times the first is exact."""
_log_tail = polynomial(
    {
        32: (0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693),
        64: (
            *(1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01),
            *(2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01),
        ),
    }
)
"""(log((1 + s) / (1 - s)) - 2 s) / s**3, a polynomial of s**2: fdlibm's."""
_SQRT2_LESS_1 = 0.41421356237309503


@forced
def exp(x: Any) -> Any:
    """The power of two comes in two factors: it may be too large for one, or the result subnormal."""
    shifted, e = exp_parts(at_least(at_most(x, _EXP_LARGEST(x)), _EXP_SMALLEST(x)))
    half = fma(shifted - rounder(x), 0.5, rounder(x))
    power = power_of_two(half)
    return fma(power, e, power) * power_of_two(shifted - (half - rounder(x)))


@forced
def _log(n: Any, f: Any) -> Any:
    """n ln 2 + log(1 + f), with 1 + f between the square roots of a half and of two, and f not rounded.

    As fdlibm does: log(1 + f) = f - f²/2 + s (f²/2 + R), s = f / (2 + f), where R is small.
    """
    s = f / (2.0 + f)
    z = s * s
    half_square = 0.5 * f * f
    rest = fma(s, fma(z, _log_tail(z), half_square), n * _LN2_LOW(n))
    return fma(n, _LN2_HIGH(n), f - (half_square - rest))


@forced
def log(x: Any) -> Any:
    """-inf at zero, NaN below."""
    normal = where_lt(x, _LEAST_NORMAL(x), x * _TO_NORMAL(x), x)
    shifted, m = by_exponent(normal)
    n = shifted - rounder(x) - where_lt(x, _LEAST_NORMAL(x), _TO_NORMAL_LOG2(x), 0.0)
    finite = where_lt(x, inf, _log(n, m - 1.0), x)
    return where_le(x, 0.0, where_lt(x, 0.0, nan, -inf), finite)


@forced
def softplus(x: Any) -> Any:
    """log(1 + exp(x)) = max(x, 0) + log(1 + y) with y = exp(-|x|): precise where it is small, too."""
    y = exp(-magnitude(x))
    n = where_lt(_SQRT2_LESS_1, y, 1.0, 0.0)
    return at_least(x, 0.0) + _log(n, where_lt(_SQRT2_LESS_1, y, fma(0.5, y, -0.5), y))


@forced
def maximum(a: Any, b: Any) -> Any:
    """The larger one; NaN where either is NaN. One of both may be a number."""
    return where_le(a, a, where_lt(b, a, a, b), a)


@forced
def minimum(a: Any, b: Any) -> Any:
    """The smaller one; NaN where either is NaN. One of both may be a number."""
    return where_le(a, a, where_lt(a, b, a, b), a)


@forced
def squared_distance(x: Any, middle: Any) -> Any:
    """(x - middle)², either of the two a number."""
    distance = x - middle
    return distance * distance
