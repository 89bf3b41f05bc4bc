"""Where `auto` prefers torch's own kernels: on the CPU by measurement, on a GPU until there is one.

The figures are times of torch.nn over times of numba, below 1 torch is ahead: float32 unless a row says otherwise, on 2
cores with AVX-512, over T in {1, 4, 16, 64}, B in {1, 8, 32, 128} and H = I in {32, 128, 256, 512, 1024}.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_ANY = 2**62


class Row(NamedTuple):
    """A range in which torch measured faster."""

    cell: str
    reason: str
    training: tuple[bool, ...] = (False, True)
    fewer_steps_than: int = _ANY
    hidden: range = range(_ANY)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


ROWS = (
    Row("lstm", "oneDNN computes in bfloat16: 0.35 to 0.86 in inference", dtypes=(torch.bfloat16,)),
    Row("lstm", "few steps do not repay laying out the weights: 0.3 to 1.05", (False,), fewer_steps_than=32),
    Row("lstm", "oneDNN's product is faster for many units: 0.67 to 1.04", (False,), hidden=range(512, _ANY)),
    Row("lstm", "few steps do not repay laying out the weights: 0.64 to 0.99", (True,), 32, range(256)),
    Row("gru", "few steps do not repay laying out the weights: 0.37 to 1.26", fewer_steps_than=8),
    Row("rnn_tanh", "few steps do not repay laying out the weights: 0.30 to 1.10", fewer_steps_than=16),
    Row("rnn_relu", "as for rnn_tanh: few steps do not repay laying out the weights", fewer_steps_than=16),
)


ON_CUDA = "cuDNN's kernels are known to be fast; fastrnn's have not been timed on a GPU yet"
"""Why torch's kernels are taken on a GPU, wherever they serve the call."""


def why_torch(cell: str, steps: int, hidden: int, dtype: torch.dtype, training: bool) -> str | None:
    """Why torch's kernels are the better choice for a layer on the CPU, or None if they are not known to be."""
    for row in ROWS:
        if (
            row.cell == cell
            and training in row.training
            and steps < row.fewer_steps_than
            and hidden in row.hidden
            and dtype in row.dtypes
        ):
            return row.reason
    return None
