"""Sigmoid and tanh against the truth: dense sweeps, the ends of the range, tiny and non-finite arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

numba = pytest.importorskip("numba", exc_type=ImportError)

from numba import njit  # noqa: E402

from fastrnn.backends.numba.kernels import activations, simd  # noqa: E402

DTYPES = [(numba.float32, np.float32), (numba.float64, np.float64)]
FUNCTIONS = {"sigmoid": (activations.sigmoid, lambda x: 1 / (1 + np.exp(-x))), "tanh": (activations.tanh, np.tanh)}
ULPS = 3
"""Measured: at most 1.7 epsilon, relative, with fused multiply-add; a little more without."""


@cache
def compiled(name: str, dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    function = FUNCTIONS[name][0]

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


@pytest.mark.parametrize(("dtype", "number"), DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_few_ulp_from_the_truth(name: str, dtype: Any, number: type) -> None:
    tiny = 2.0 ** -np.arange(0, 125 if number is np.float32 else 1020)
    x = np.concatenate([np.linspace(-20, 20, 400_001), np.linspace(-1e-3, 1e-3, 10_001), tiny, -tiny]).astype(number)
    x = x[x != 0]
    truth = FUNCTIONS[name][1](x.astype(np.longdouble))
    error = np.abs(compiled(name, dtype)(x) - truth) / np.abs(truth)
    assert error.max() <= ULPS * np.finfo(number).eps, x[error.argmax()]


@pytest.mark.parametrize(("dtype", "number"), DTYPES)
def test_distance_of_tanh_from_one_is_as_good_as_rounding(dtype: Any, number: type) -> None:
    """Derivatives use 1 - tanh²: where tanh is near 1, an error of some ulp would be multiplied."""
    x = np.linspace(1, 9, 100_001).astype(number)
    for sign in (1, -1):
        error = np.abs(compiled("tanh", dtype)((sign * x).astype(number)) - sign * np.tanh(x.astype(np.longdouble)))
        assert error.max() <= np.finfo(number).eps


@pytest.mark.parametrize(("dtype", "number"), DTYPES)
def test_non_finite_huge_and_subnormal(dtype: Any, number: type) -> None:
    info = np.finfo(number)
    x = np.array([np.nan, np.inf, -np.inf, info.max, -info.max, 100, -100, 0, -0.0, info.smallest_subnormal], number)
    tanh, sigmoid = compiled("tanh", dtype)(x), compiled("sigmoid", dtype)(x)
    np.testing.assert_array_equal(tanh, np.array([np.nan, 1, -1, 1, -1, 1, -1, 0, 0, tanh[9]], number))
    assert np.signbit(tanh[8])
    assert abs(tanh[9]) <= info.smallest_subnormal
    assert np.isnan(sigmoid[0])
    np.testing.assert_array_equal(sigmoid[[1, 3, 5, 7, 8, 9]], np.array([1, 1, 1, 0.5, 0.5, 0.5], number))
    assert (sigmoid[[2, 4]] < 4 * info.tiny).all()
    assert 0 < sigmoid[6] < 1e-37
