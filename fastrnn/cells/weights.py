"""The weights of one layer and direction, which modules and functions give one after another, by what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastrnn.cells.contract import Cell


class Parted(NamedTuple):
    """In the order in which they are given."""

    w_ih: Tensor
    w_hh: Tensor
    biases: Sequence[Tensor]
    """b_ih and b_hh, or nothing"""
    extras: Sequence[Tensor]
    """w_hr of a projected LSTM, else nothing"""
    parameters: Sequence[Tensor]
    """as `Cell.parameters` names them"""


def parted(cell: Cell, weights: Sequence[Tensor]) -> Parted:
    """The weights of one layer and direction of the cell."""
    end = len(weights) - len(cell.parameters)
    last_bias = 4 if end > 3 else 2
    return Parted(weights[0], weights[1], weights[2:last_bias], weights[last_bias:end], weights[end:])


def heads(w_hh: Tensor) -> int:
    """N of (N, Gu·D, D), or of one head (Gu·H, H)."""
    return w_hh.shape[0] if w_hh.dim() == 3 else 1
