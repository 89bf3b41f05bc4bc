"""The LSTM's projection, which no other cell has."""

from __future__ import annotations

from torch import Tensor

CELLS = ("lstm",)
"""The cells that may have one."""


def unprojected_output(saved: tuple[Tensor, ...], c: Tensor) -> Tensor:
    """o tanh(c'), what a projection `w_hr` (P, H) multiplies (Sak et al., 2014), from what `step` saved and c'."""
    return saved[3] * c.tanh()
