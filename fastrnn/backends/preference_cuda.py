"""What `auto` takes on a GPU, by measurement: which of fastrnn's kernels, and where cuDNN's are faster.

Measured on an H200 by `python -m benchmarks.gpu`, whose results lie in benchmarks/results; docs/performance.md has the
figures. Forward and backward choose apart, since what is saved between them has one layout. Sizes in between those that
were measured go with the larger one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrnn.backends import tf32
from fastrnn.backends.layer import Layer

_ANY = 2**62
_GATED, _SIMPLE = ("lstm", "gru"), ("rnn_tanh", "rnn_relu")


class Torch(NamedTuple):
    """A range in which cuDNN measured faster than every kernel of fastrnn."""

    cells: tuple[str, ...]
    precisions: tuple[str, ...]
    """as `precision` names them"""
    units: range
    reason: str
    batch: range = range(_ANY)
    steps: range = range(_ANY)
    training: tuple[bool, ...] = (False, True)


TORCH: tuple[Torch, ...] = ()

WIDEST_OF_TRITON = {"forward": {"lstm": 128, "gru": 128, "rnn_tanh": 64, "rnn_relu": 64}, "backward": {}}
"""By operation and cell, the units of a head up to which Triton's kernels measured faster than those in CUDA C++."""


def precision(dtype: torch.dtype) -> str:
    """As what a recurrence multiplies: the dtype's name, or tf32 where torch allows its own layers that."""
    return "tf32" if dtype == torch.float32 and tf32.allowed() else str(dtype).removeprefix("torch.")


def order(layer: Layer, operation: str) -> tuple[str, ...]:
    """Fastrnn's backends for GPUs, the one that measured faster first."""
    widest = WIDEST_OF_TRITON[operation].get(layer.cell_name, 0)
    return ("triton", "cuda") if layer.hidden_size // layer.heads <= widest else ("cuda", "triton")


def why_torch(layer: Layer, training: bool) -> str | None:
    """Why cuDNN is the better choice for a layer that fastrnn's kernels serve too, or None if it is not known to be."""
    steps, batch, _ = layer.x.shape
    for row in TORCH:
        if (
            layer.cell_name in row.cells
            and precision(layer.x.dtype) in row.precisions
            and layer.hidden_size // layer.heads in row.units
            and int(batch) in row.batch
            and int(steps) in row.steps
            and training in row.training
        ):
            return row.reason
    return None
