"""Memory for one call, kept for the next one where giving it back would cost much.

The C library hands large pieces of memory back to the system, which clears them page by page when they are asked for
again: 10 ms for the laid-out weights of an LSTM of 1024 units, in a call that takes 20.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    return torch.empty(size, dtype=torch.uint8)


def give_back(memory: Tensor) -> None:
    """Keeps what `take` gave, if it is worth it and nothing is kept."""
    if not _free and memory.numel() in KEPT:
        _free.append(memory)
