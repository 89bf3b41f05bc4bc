"""The functions that no built-in cell needs against the truth: sweeps, the ends of the range, non-finite arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

numba = pytest.importorskip("numba", exc_type=ImportError)

from numba import njit  # noqa: E402

from fastrnn.backends.numba.kernels import functions, simd  # noqa: E402

FUNCTIONS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "exp": (functions.exp, np.exp),
    "log": (functions.log, np.log),
    "softplus": (functions.softplus, lambda x: np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))),
    "sqrt": (simd.sqrt, np.sqrt),
}
NUMBERS = [np.float32, np.float64]
ULPS = 2
"""Measured: at most 1.1 epsilon, relative, with fused multiply-add."""


@cache
def compiled(name: str, number: type) -> Callable[[np.ndarray], np.ndarray]:
    function, dtype = FUNCTIONS[name][0], numba.from_dtype(np.dtype(number))

    @njit
    def run(x: int, y: int, count: int) -> None:
        like = simd.zeros(dtype)
        for i in range(0, count, simd.lanes(like)):
            simd.store_some(y, i, function(simd.load_some(like, x, i, count - i)), count - i)

    def apply(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        run(x.ctypes.data, y.ctypes.data, len(x))
        return y

    return apply


def arguments(name: str, number: type) -> np.ndarray:
    """Everywhere, and closely where the function or its way of computation changes."""
    info = np.finfo(number)
    powers = 2.0 ** np.arange(np.log2(float(info.smallest_subnormal)), np.log2(float(info.max)), 0.37)
    if name in ("log", "sqrt"):
        return np.concatenate([powers, np.linspace(0.5, 2, 30_001), 1 + np.linspace(-1e-3, 1e-3, 10_001)])
    lowest, largest = np.log(float(info.tiny)), np.log(float(info.max))
    x = np.concatenate([np.linspace(lowest, largest - 1e-3, 30_001), np.linspace(-3, 3, 30_001)])
    small = powers[powers < 1]
    return np.concatenate([x, small, -small])


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_few_ulp_from_the_truth(name: str, number: type) -> None:
    x = arguments(name, number).astype(number)
    truth = FUNCTIONS[name][1](x.astype(np.longdouble))
    error = abs(compiled(name, number)(x) - truth)
    allowed = ULPS * np.finfo(number).eps * abs(truth) + np.finfo(number).smallest_subnormal
    assert (error <= allowed).all(), x[(error - allowed).argmax()]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_ends_of_the_range(name: str, number: type) -> None:
    info = np.finfo(number)
    ends = [np.nan, np.inf, -np.inf, 0, -0.0, -1, info.max, -info.max, info.smallest_subnormal, info.tiny]
    ends += [np.log(info.max) * 1.001, np.log(info.tiny) - 1, np.log(info.smallest_subnormal) - 1]
    x = np.array(ends, number)
    with np.errstate(all="ignore"):
        expected = FUNCTIONS[name][1](x.astype(np.longdouble)).astype(number)
    np.testing.assert_allclose(compiled(name, number)(x), expected, 4 * info.eps, info.smallest_subnormal)


@pytest.mark.parametrize("number", NUMBERS)
def test_extremes_let_nan_pass(number: type) -> None:
    dtype = numba.from_dtype(np.dtype(number))

    @njit
    def run(x: int, y: int, z: int) -> None:
        a, b = simd.load(simd.zeros(dtype), x, 0), simd.load(simd.zeros(dtype), y, 0)
        simd.store(z, 0, functions.maximum(a, b))
        simd.store(z, simd.lanes(a), functions.minimum(a, b))
        simd.store(z, 2 * simd.lanes(a), functions.maximum(a, 0.0))
        simd.store(z, 3 * simd.lanes(a), functions.minimum(0.0, a))

    lanes = simd.Vector(dtype).lanes
    pairs = [(1, -2), (-1, 3), (np.nan, 1), (1, np.nan), (-np.inf, np.nan), (np.inf, 1)]
    for some in [pairs[start : start + lanes] for start in range(0, len(pairs), lanes)]:
        x, y = np.array([*some, *[(0, 0)] * (lanes - len(some))], number).T.copy()
        z = np.empty((4, lanes), number)
        run(x.ctypes.data, y.ctypes.data, z.ctypes.data)
        expected = np.maximum(x, y), np.minimum(x, y), np.maximum(x, 0), np.minimum(0, x)
        np.testing.assert_array_equal(z, expected)
