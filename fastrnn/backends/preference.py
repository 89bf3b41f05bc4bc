"""Where `auto` prefers torch's own kernels on the CPU, by measurement; `preference_cuda` has the GPU's.

The figures are times of torch.nn over times of numba, below 1 torch is ahead: float32 unless a row says otherwise, on 2
cores with AVX-512, over T in {1, 2, 4, 8, 16}, B in {1, 8, 32, 128} and H = I in {32, 128, 256, 512, 1024}, of calls
that are repeated. An LSTM's single step: torch's cell kernel over numba, B in {1, 32, 128}, on 1 and 2 cores,
as in a loop over `LSTMCell`. Measured for rnn_tanh; rnn_relu differs from it in its activation only.
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
    Row("lstm", "few steps do not repay what backward prepares: 0.85 to 1.05", (True,), 8, range(256)),
    Row("lstm", "a single step is sooner done by torch's cell kernel: 0.29 to 0.92", (True,), 2, range(256, _ANY)),
    Row("gru", "few steps do not repay what backward prepares: 0.14 to 1.09", (True,), 3),
    Row("gru", "few steps do not repay laying out large weights: 0.62 to 1.13", (True,), 5, range(512, _ANY)),
    *(
        row
        for cell in ("rnn_tanh", "rnn_relu")
        for row in (
            Row(cell, "few steps do not repay what backward prepares: 0.31 to 1.05", (True,), 6),
            Row(cell, "few steps do not repay laying out large weights: 0.45 to 1.23", (False,), 8, range(768, _ANY)),
        )
    ),
)


def why_torch(cell: str, steps: int, hidden: int, dtype: torch.dtype, training: bool) -> str | None:
    """Why torch's kernels are the better choice for a layer on the CPU, or None if they are not known to be."""
    # While torch.jit traces, sizes are tensors, which `in` would compare with one number after the other.
    steps, hidden = int(steps), int(hidden)
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
