"""Packed rows to padded steps and back, by indices: for compilers, who cannot see into torch's own functions."""

from __future__ import annotations

import torch
from torch import Tensor


def pad(rows: Tensor, batch_sizes: Tensor, batch: int) -> Tensor:
    """rows (sum of lengths, F) -> (T, B, F), zero beyond each length; batch_sizes (T,) is on the CPU."""
    sequence = torch.arange(batch)
    live = sequence < batch_sizes[:, None]
    place = torch.where(live, _first_rows(batch_sizes)[:, None] + sequence, 0)
    padded = rows.index_select(0, place.flatten().to(rows.device)).unflatten(0, (-1, batch))
    return torch.where(live[..., None].to(rows.device), padded, 0)


def pack(padded: Tensor, batch_sizes: Tensor, count: int) -> Tensor:
    """padded (T, B, F) -> (count, F), `count` being the sum of all lengths."""
    row = torch.arange(count)
    step = torch.searchsorted(batch_sizes.cumsum(0), row, right=True)
    place = step * padded.shape[1] + row - _first_rows(batch_sizes)[step]
    return padded.flatten(0, 1).index_select(0, place.to(padded.device))


def _first_rows(batch_sizes: Tensor) -> Tensor:
    """(T,): the row of each step's first sequence."""
    return batch_sizes.cumsum(0) - batch_sizes
