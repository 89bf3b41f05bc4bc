"""Memory that is kept from call to call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

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


def flags_of(address: int) -> list[str]:
    """Of the mapping of memory that holds this address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, end = (int(place, 16) for place in head.split("-"))
            inside = first <= address < end
        elif inside and head == "VmFlags:":
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {address}")


@pytest.mark.skipif(
    sys.platform != "linux" or not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages"
)
def test_large_results_are_asked_for_in_huge_pages() -> None:
    large = workspace.empty((2, workspace.FRESH // 8), torch.float32)
    assert large.shape == (2, workspace.FRESH // 8)
    assert large.dtype == torch.float32
    assert "hg" in flags_of(large.data_ptr() + large.nbytes // 2)


def test_small_results_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the call: the memory that they get may have been asked for so before, by whoever had it."""
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(workspace, "_ask_for_huge_pages", asked.append)
    workspace.empty((workspace.FRESH - 1,), torch.uint8)
    assert not asked
    large = workspace.empty((workspace.FRESH,), torch.uint8)
    assert asked[0] is large


def test_where_no_huge_pages_are_known_results_are_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_madvise", lambda: None)
    assert workspace.empty((workspace.FRESH,), torch.uint8).numel() == workspace.FRESH
