"""The vector type and its operations, against NumPy, one vector at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

numba = pytest.importorskip("numba", exc_type=ImportError)

from numba import njit  # noqa: E402

from fastrnn.backends.numba.kernels import simd, transpose  # noqa: E402
from fastrnn.backends.numba.kernels.rows import clear_row, fetch_row  # noqa: E402

DTYPES = [(numba.float32, np.float32), (numba.float64, np.float64)]
SENTINEL = 7.0


def lanes_of(dtype: Any) -> int:
    return simd.Vector(dtype).lanes


def applied(function: Callable[..., Any], dtype: Any, *inputs: np.ndarray) -> np.ndarray:
    """`function` of vectors loaded from the inputs, as an array."""
    out = np.empty(lanes_of(dtype), inputs[0].dtype)
    operation = njit(function)
    if len(inputs) == 1:

        @njit
        def run(x: int, out: int) -> None:
            simd.store(out, 0, operation(simd.load(simd.zeros(dtype), x, 0)))

    else:

        @njit
        def run(x: int, y: int, out: int) -> None:
            like = simd.zeros(dtype)
            simd.store(out, 0, operation(simd.load(like, x, 0), simd.load(like, y, 0)))

    run(*(array.ctypes.data for array in inputs), out.ctypes.data)
    return out


@pytest.mark.parametrize(("dtype", "number"), DTYPES)
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: (x + y) * x - y / x, lambda x, y: (x + y) * x - y / x),
        (lambda x, y: 1.0 - x * 2, lambda x, y: 1.0 - x * 2),
        (lambda x, y: simd.fma(x, y, 1.0), lambda x, y: x * y + 1),
        (lambda x, y: simd.at_least(x, y), lambda x, y: np.maximum(x, y)),
        (lambda x, y: simd.at_most(x, 0.5), lambda x, y: np.minimum(x, 0.5)),
        (lambda x, y: simd.where_lt(0.0, x, y, 1.0), lambda x, y: np.where(x > 0, y, 1)),
        (lambda x, y: simd.where_le(x, y, 0.0, y), lambda x, y: np.where(x <= y, 0, y)),
        (lambda x, y: -x, lambda x, y: -x),
        (lambda x, y: simd.with_sign_of(x, y), lambda x, y: np.copysign(y, x)),
        (lambda x, y: simd.magnitude(x), lambda x, y: abs(x)),
        (lambda x, y: simd.reciprocal(x), lambda x, y: 1 / x),
    ],
)
def test_arithmetic(
    dtype: Any, number: type, function: Callable[..., Any], expected: Callable[..., np.ndarray]
) -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, lanes_of(dtype))).astype(number)
    result = applied(function, dtype, x, y)
    np.testing.assert_allclose(result, expected(x, y).astype(number), rtol=8 * np.finfo(number).eps)


@pytest.mark.parametrize(("dtype", "number"), DTYPES)
def test_nan_passes_through_the_bounds(dtype: Any, number: type) -> None:
    x = np.full(lanes_of(dtype), np.nan, number)
    for function in (
        lambda x: simd.at_least(x, 0.0),
        lambda x: simd.at_most(x, 0.0),
        lambda x: simd.where_le(x, 0.0, 0.0, x),
        lambda x: simd.where_lt(0.0, x, 0.0, x),
        lambda x: simd.where_le(x, x, 0.0, x),
        lambda x: simd.reciprocal(x),
    ):
        assert np.isnan(applied(function, dtype, x)).all()


@pytest.mark.parametrize(("dtype", "number"), DTYPES)
def test_equal_numbers_are_at_most_each_other_and_not_below(dtype: Any, number: type) -> None:
    x = np.ones(lanes_of(dtype), number)
    assert (applied(lambda x: simd.where_le(x, 1.0, 2.0, x), dtype, x) == 2).all()
    assert (applied(lambda x: simd.where_lt(x, 1.0, 2.0, x), dtype, x) == 1).all()


@pytest.mark.parametrize(("dtype", "number"), DTYPES)
def test_masked_loads_and_stores_touch_nothing_else(dtype: Any, number: type) -> None:
    width = lanes_of(dtype)

    @njit
    def run(x: int, out: int, count: int) -> None:
        simd.store_some(out, 0, simd.load_some(simd.zeros(dtype), x, 0, count) + 1.0, count)

    for count in (-1, 0, 1, width - 1, width, width + 3):
        x, out = np.arange(width, dtype=number), np.full(width, SENTINEL, number)
        run(x.ctypes.data, out.ctypes.data, count)
        stored = min(max(count, 0), width)
        np.testing.assert_array_equal(out[:stored], x[:stored] + 1)
        np.testing.assert_array_equal(out[stored:], SENTINEL)


@pytest.mark.parametrize(("dtype", "number"), DTYPES)
def test_transposed_block(dtype: Any, number: type) -> None:
    width = lanes_of(dtype)

    @njit
    def run(source: int, row: int, rows: int, columns: int, target: int, step: int) -> None:
        transpose.transpose(simd.zeros(dtype), source, row, rows, columns, target, step)

    for rows, columns in ((width, width), (1, width), (width - 1, min(3, width)), (width + 5, 1), (0, 2)):
        source = np.random.default_rng(0).standard_normal((width, width + 3)).astype(number)
        target = np.full((width, width + 1), SENTINEL, number)
        run(source.ctypes.data, width + 3, rows, columns, target.ctypes.data, width + 1)
        expected = np.full_like(target, SENTINEL)
        expected[:columns, :width] = 0
        expected[:columns, : min(rows, width)] = source[:rows, :columns].T
        np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize(("dtype", "number"), DTYPES)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40])
def test_rows_are_fetched_and_cleared_to_their_end_only(dtype: Any, number: type, count: int) -> None:
    @njit
    def fetch(source: int, target: int, count: int) -> None:
        fetch_row(simd.zeros(dtype), source, target, count)

    @njit
    def clear(target: int, count: int) -> None:
        clear_row(simd.zeros(dtype), target, count)

    source, target = np.arange(50, dtype=number), np.full(50, SENTINEL, number)
    fetch(source.ctypes.data, target.ctypes.data, count)
    np.testing.assert_array_equal(target[:count], source[:count])
    np.testing.assert_array_equal(target[count:], SENTINEL)
    for erase in (lambda: fetch(0, target.ctypes.data, count), lambda: clear(target.ctypes.data, count)):
        target[:count] = SENTINEL
        erase()
        np.testing.assert_array_equal(target, np.where(np.arange(50) < count, 0, SENTINEL))


def test_tickets_are_numbered() -> None:
    @njit
    def take(counter: int) -> int:
        return simd.take_ticket(counter)

    counter = np.zeros(1, np.int64)
    assert [take(counter.ctypes.data) for _ in range(4)] == [0, 1, 2, 3]
    assert counter[0] == 4
