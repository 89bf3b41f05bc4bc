"""Memory that is kept from call to call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fastrnn
from fastrnn.backends import module
from fastrnn.backends.numba import workspace

KEPT = workspace.KEPT.start


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    workspace._free.clear()
    yield
    workspace._free.clear()


def test_a_large_piece_is_taken_again() -> None:
    first = workspace.take(KEPT)
    workspace.give_back(first)
    assert workspace.take(KEPT).data_ptr() == first.data_ptr()


def test_calls_at_the_same_time_have_their_own() -> None:
    first, second = workspace.take(KEPT), workspace.take(KEPT)
    assert first.data_ptr() != second.data_ptr()
    workspace.give_back(first)
    workspace.give_back(second)
    assert len(workspace._free) == 1


def test_a_piece_that_is_too_small_is_let_go() -> None:
    workspace.give_back(workspace.take(KEPT))
    assert workspace.take(KEPT + 1).numel() == KEPT + 1
    assert not workspace._free


@pytest.mark.parametrize("size", [0, KEPT - 1, workspace.KEPT.stop])
def test_other_sizes_are_not_kept(size: int) -> None:
    workspace.give_back(torch.empty(size, dtype=torch.uint8))
    assert not workspace._free


@pytest.mark.skipif(bool(module("numba").ready()), reason="no Numba")
def test_what_was_left_in_it_does_not_matter() -> None:
    lstm, x = fastrnn.LSTM(600, 900, backend="numba"), torch.randn(2, 9, 600)
    expected = lstm(x)[0]
    (memory,) = workspace._free
    memory.fill_(255)  # NaN, as numbers
    assert torch.equal(lstm(x)[0], expected)
    assert workspace._free[0].data_ptr() == memory.data_ptr()
