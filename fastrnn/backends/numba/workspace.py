"""Memory for one call, kept for the next one where giving it back would cost much; and memory for results.

The C library hands large pieces of memory back to the system, which clears them page by page when they are asked for
again: 10 ms for the laid-out weights of an LSTM of 1024 units, in a call that takes 20. Results, which cannot be kept,
are asked for in huge pages.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from functools import cache
from math import prod

import torch
from torch import Tensor

from fastrnn.backends.numba.geometry import CACHE_LINE, divide_up

FRESH = 32 << 20
"""Bytes of a result from which the GNU C library always asks the system for memory and never reuses any. Training an
LSTM and a GRU of 512 units, T = 100, B = 64, took 0.9 and 0.8 of the time with huge pages for these; smaller results,
which are reused, gained nothing."""
HUGE_PAGE = 2 << 20
"""Bytes of a huge page on most processors."""
KEPT = range(16 << 20, 257 << 20)
"""Bytes of a piece that is kept: the C library keeps smaller ones, and what larger ones hold takes long to compute."""

_free: list[Tensor] = []
"""One piece at most: calls at the same time take their own."""


def take(size: int) -> Tensor:
    """Memory of at least `size` bytes, at the start of a cache line; `give_back` it."""
    if size in KEPT:
        try:
            memory = _free.pop()
        except IndexError:
            pass
        else:
            if memory.numel() >= size:
                return memory
    return empty((size,), torch.uint8)


def lent(sizes: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor of these sizes, and the memory to give back once nothing refers to it."""
    size = prod(sizes) * dtype.itemsize
    memory = take(size)
    return memory[:size].view(dtype).view(sizes), memory


def give_back(memory: Tensor) -> None:
    """Keeps what `take` gave, if it is worth it and nothing is kept."""
    if not _free and memory.numel() in KEPT:
        _free.append(memory)


def empty(sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A new tensor for results, of which every element will be written."""
    tensor = torch.empty(sizes, dtype=dtype)
    if prod(sizes) * dtype.itemsize >= FRESH:
        _ask_for_huge_pages(tensor)
    return tensor


def pages(size: int) -> Tensor:
    """Memory of `size` bytes, all zero: at the start of a huge page where it is that large and the system gives one."""
    page = HUGE_PAGE if size >= HUGE_PAGE // 2 else CACHE_LINE
    memory = torch.empty(divide_up(size, page) * page + page, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % page :]
    _ask_for_huge_pages(memory)
    return memory[:size].zero_()


def _ask_for_huge_pages(tensor: Tensor) -> None:
    """Where the system gives them to who asks; else nothing happens, which is right as well."""
    advise = _madvise()
    if advise is not None:
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(first, tensor.data_ptr() + tensor.nbytes - first, mmap.MADV_HUGEPAGE)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """madvise(address, length, advice) of the C library; None where there is none that knows huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
