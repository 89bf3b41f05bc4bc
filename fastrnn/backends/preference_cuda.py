"""What `auto` takes on a GPU, by measurement: which of fastrnn's kernels, and where torch's are faster.

Measured on an H200 by `python -m benchmarks.gpu`; docs/performance-gpu.md has the figures, benchmarks/results every
point. Forward and backward choose apart, since what is saved between them has one layout. Sizes between two that were
measured go with the larger one; batches larger than those are reckoned from how time grew. Of cells that are not built
in nobody has measured the kernels in CUDA C++: Triton's are taken. Rows that stand for the host's time hold in CUDA
graphs as well: what is captured must be what warmed up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrnn.backends import tf32
from fastrnn.backends.layer import Layer
from fastrnn.cells import CELLS

_ANY = 2**62
_SIXTEEN_BITS = ("bfloat16", "float16")
_GATED, _SIMPLE = ("lstm", "gru"), ("rnn_tanh", "rnn_relu")


class Torch(NamedTuple):
    """A range in which torch's kernels are taken to be faster than every kernel of fastrnn."""

    cells: tuple[str, ...]
    precisions: tuple[str, ...]
    """as `precision` names them"""
    units: range
    """of a head"""
    reason: str
    batch: range = range(_ANY)
    steps: range = range(_ANY)
    training: tuple[bool, ...] = (False, True)


_HOST = "a call of cuDNN's takes less of the host"
_REGISTERS = "cuDNN keeps the weights in registers, too, and needs less for a step"
_BATCH = "a product for each step shares more among many sequences"

_UNTIMED = "fastrnn's kernels for it have not been timed on a GPU"

TORCH = (
    Torch((*_GATED, *_SIMPLE), ("float32", "float64"), range(_ANY), _UNTIMED),
    Torch((*_GATED, *_SIMPLE), ("tf32",), range(65), _REGISTERS),
    Torch(_GATED, ("float16", "tf32"), range(129), _HOST, steps=range(320), training=(True,)),
    Torch(_GATED, ("float16",), range(129), _HOST, steps=range(129), training=(False,)),
    Torch(_GATED, ("float16", "tf32"), range(129, 1025), _HOST, steps=range(100), training=(True,)),
    Torch(_GATED, ("float16",), range(513, 769), _REGISTERS, batch=range(64), training=(False,)),
    Torch(_GATED, ("float16",), range(769, 1025), _REGISTERS, batch=range(64)),
    Torch(_GATED, _SIXTEEN_BITS, range(129, 257), _BATCH, batch=range(769, _ANY)),
    Torch(_GATED, _SIXTEEN_BITS, range(257, 513), _BATCH, batch=range(257, _ANY)),
    Torch(_GATED, _SIXTEEN_BITS, range(513, 769), _BATCH, batch=range(129, _ANY)),
    Torch(_GATED, _SIXTEEN_BITS, range(769, 1025), _BATCH, batch=range(65, _ANY)),
    Torch(_GATED, _SIXTEEN_BITS, range(1025, _ANY), _BATCH, batch=range(33, _ANY)),
)
"""The first row that has a layer is its own. In bfloat16 torch calls no cuDNN, but launches kernels for each step."""


class Triton(NamedTuple):
    """Where Triton's kernels measured faster than those in CUDA C++, in 16 bits."""

    units: int
    """of a head at most"""
    batch: int = 0
    """sequences at least"""


NEVER = Triton(-1)
FORWARD = {"lstm": Triton(128), "gru": Triton(128), "rnn_tanh": NEVER, "rnn_relu": NEVER}
BACKWARD = {"lstm": Triton(64, 129), "gru": Triton(64, 129), "rnn_tanh": Triton(64), "rnn_relu": Triton(64)}
TRITON = {"forward": FORWARD, "backward": BACKWARD}
"""By operation and cell."""


def precision(dtype: torch.dtype) -> str:
    """As what a recurrence multiplies: the dtype's name, or tf32 where torch allows its own layers that."""
    return "tf32" if dtype == torch.float32 and tf32.allowed() else str(dtype).removeprefix("torch.")


def order(layer: Layer, operation: str) -> tuple[str, ...]:
    """Fastrnn's backends for GPUs, the one that measured faster first; Triton alone for cells that are not built in."""
    if layer.cell_name not in CELLS:
        return ("triton",)
    limit = TRITON[operation].get(layer.cell_name, NEVER)
    units, batch = int(layer.hidden_size) // int(layer.heads), int(layer.x.shape[1])
    fits = units <= limit.units and batch >= limit.batch
    return ("triton", "cuda") if fits and precision(layer.x.dtype) in _SIXTEEN_BITS else ("cuda", "triton")


def why_torch(layer: Layer, training: bool) -> str | None:
    """Why torch's are the better choice for a layer that fastrnn's kernels serve too, or None if not known to be."""
    # While torch.jit traces, sizes are tensors, which `in` would compare with one number after the other.
    steps, batch, _ = map(int, layer.x.shape)
    units = int(layer.hidden_size) // int(layer.heads)
    for row in TORCH:
        if (
            layer.cell_name in row.cells
            and precision(layer.x.dtype) in row.precisions
            and units in row.units
            and batch in row.batch
            and steps in row.steps
            and training in row.training
        ):
            return row.reason
    return None
