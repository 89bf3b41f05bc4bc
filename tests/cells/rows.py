"""A step and its derivative of some units, by PyTorch: what the code for others than PyTorch is held against.

A group of values is a tensor (values, units), as many rows as the cell has of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.cells import Cell

SIZES = ("x_gates", "u_gates", "states", "parameters", "inputs", "states")
"""What of a cell each argument has a row for: gx, gh, the states before, parameters, inputs, the gradients after."""


def random_arguments(cell: Cell, units: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The states are positive: what is divided by one that is nearly zero would not be comparable."""
    arguments = [torch.randn(len(getattr(cell, size)), units, dtype=dtype) for size in SIZES]
    arguments[2] = torch.rand_like(arguments[2]) + 0.5
    return arguments


def by_pytorch(cell: Cell, arguments: Sequence[Tensor]) -> list[Tensor]:
    """The states after the step, what is saved, the blocks' gradients and those of the states before."""
    gx, gh, *others = arguments
    before, parameters, inputs, d_after = (tuple(group) for group in others)
    after, saved = cell.step(gx, gh, before, parameters, inputs)
    blocks, d_before = cell.step_backward(d_after, saved, before, after, parameters, inputs)
    return [torch.stack(group) if group else gx[:0] for group in (after, saved, blocks, d_before)]
