"""Copying, multiplying and clearing rows of numbers, by address."""

from __future__ import annotations

from typing import Any

from fastrnn.backends.numba.kernels.inner import forced
from fastrnn.backends.numba.kernels.simd import lanes, load_some, store_some


@forced
def copy_row(like: Any, source: int, target: int, count: int) -> None:
    for i in range(0, count, lanes(like)):
        store_some(target, i, load_some(like, source, i, count - i), count - i)


@forced
def multiply_row(like: Any, left: int, right: int, target: int, count: int) -> None:
    for i in range(0, count, lanes(like)):
        store_some(target, i, load_some(like, left, i, count - i) * load_some(like, right, i, count - i), count - i)


@forced
def clear_row(like: Any, target: int, count: int) -> None:
    for i in range(0, count, lanes(like)):
        store_some(target, i, like, count - i)


@forced
def fetch_row(like: Any, source: int, target: int, count: int) -> None:
    """Copies a row, or clears it where the source is not there."""
    if source != 0:
        copy_row(like, source, target, count)
    else:
        clear_row(like, target, count)
