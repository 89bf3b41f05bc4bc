"""What `auto` takes on a GPU, by measurement: which of fastrnn's kernels, and where cuDNN's are faster.

Measured on an H200 by `python -m benchmarks.gpu`; docs/performance.md has every point, benchmarks/results what was
recorded. Forward and backward choose apart, since what is saved between them has one layout. Sizes between two that
were measured go with the larger one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrnn.backends import tf32
from fastrnn.backends.layer import Layer

_ANY = 2**62
_SIXTEEN_BITS = ("bfloat16", "float16")
_GATED, _SIMPLE = ("lstm", "gru"), ("rnn_tanh", "rnn_relu")


class Torch(NamedTuple):
    """A range in which cuDNN measured faster than every kernel of fastrnn."""

    cells: tuple[str, ...]
    precisions: tuple[str, ...]
    """as `precision` names them"""
    units: range
    """of a head"""
    reason: str
    batch: range = range(_ANY)
    steps: range = range(_ANY)
    training: tuple[bool, ...] = (False, True)
    host: bool = False
    """whether it is the host that takes longer to call fastrnn's: no reason where a CUDA graph is captured"""


TORCH = (
    Torch((*_GATED, *_SIMPLE), ("tf32",), range(65), "cuDNN keeps the weights of small heads in registers, too"),
    Torch(_GATED, ("float16",), range(129), "cuDNN's call takes less of the host", steps=range(512), host=True),
    Torch(_GATED, ("float16",), range(769, 1025), "cuDNN keeps the weights in registers, too", range(64)),
    Torch(_GATED, _SIXTEEN_BITS, range(513, 1025), "products a step share more of large batches", range(129, _ANY)),
    Torch(_GATED, _SIXTEEN_BITS, range(1025, _ANY), "products a step share more of large batches", range(33, _ANY)),
)

WIDEST_OF_TRITON = {
    "forward": {"lstm": 128, "gru": 128, "rnn_tanh": 64, "rnn_relu": 64},
    "backward": {"lstm": 0, "gru": 0, "rnn_tanh": 0, "rnn_relu": 0},
}
"""By operation and cell: up to how many units of a head Triton's kernels are faster than CUDA C++'s, in 16 bits."""


def precision(dtype: torch.dtype) -> str:
    """As what a recurrence multiplies: the dtype's name, or tf32 where torch allows its own layers that."""
    return "tf32" if dtype == torch.float32 and tf32.allowed() else str(dtype).removeprefix("torch.")


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured, which will be launched at once."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def order(layer: Layer, operation: str) -> tuple[str, ...]:
    """Fastrnn's backends for GPUs, the one that measured faster first."""
    small = layer.hidden_size // layer.heads <= WIDEST_OF_TRITON[operation][layer.cell_name]
    return ("triton", "cuda") if small and precision(layer.x.dtype) in _SIXTEEN_BITS else ("cuda", "triton")


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
            and not (row.host and is_capturing())
        ):
            return row.reason
    return None
