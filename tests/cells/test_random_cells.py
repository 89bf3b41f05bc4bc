"""A few random cells; `python -m tests.cells.random_cells` tries thousands."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from fastrnn import backends
from tests.cells.random_cells import check, functions, repeatable


@settings(repeatable, max_examples=30)
@given(functions())
def test_random_cells_keep_their_promises(source: str) -> None:
    check(source)


@pytest.mark.exhaustive  # the cell `everything` of tests.backends.test_numba_other_cells finds most of it sooner
@settings(repeatable, max_examples=2)
@given(functions())
def test_random_cells_in_numbas_kernels(source: str) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    from tests.cells.kernel_layers import check_layer

    check_layer(source, backends.module("numba"))
