"""Which of the CPU's two engines is sooner done with a call: fastrnn's kernels ("numba") or torch's own ("aten").

What a call takes is predicted from its sizes: a sum of what an engine does, each so many times, by what one takes. The
first are `terms`, written here; the second is the table `cost.json`, which `python -m benchmarks.cost` measures and
fits. It has a row for each *way* of an engine, these being different programs, with each cell and dtype.

Nothing here looks at tensors, so that it can be asked wherever sizes are known, in a few microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from operator import mul
from pathlib import Path
from typing import NamedTuple

import torch

from fastrnn.backends.numba import unpacked
from fastrnn.backends.numba.split import WORK_PER_THREAD
from fastrnn.cells.known import KNOWN

ENGINES = ("numba", "aten")
UNITS = 64
"""Bytes: both engines compute for a whole vector of hidden units at a time, the widest being AVX-512's."""
CACHE = 1 << 20
"""Bytes of recurrent weights, of half a second-level cache: those beyond are waited for in every step."""
LARGE = 4 << 20
"""Bytes of one tensor: larger ones leave the cache before they are read again, and the C library may give their memory
back to the system, which clears it for the next call. An LSTM of 16 units, T = 5, B = 500, took 3.6 times as long to
train by torch with 510 inputs as with 256, and 2.2 times by numba."""
TABLE_FILE = Path(__file__).with_name("cost.json")
TABLE: dict[str, list[float]] = json.loads(TABLE_FILE.read_text())["seconds"]
"""By row, the seconds that each of `TERMS` takes."""
DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Sizes(NamedTuple):
    """What is known of a call before it is made. Sizes may be tensors, as they are while torch.jit traces."""

    cell_name: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    outputs: int
    """P with a projection, else H"""
    directions: int = 1
    layers: int = 1
    dtype: torch.dtype = torch.float32
    training: bool = False
    """whether gradients are going to be computed"""
    is_cell: bool = False
    """whether the module is a cell's"""
    threads: int = 0
    """0 for as many as torch has now"""


def why_torch(sizes: Sizes) -> str | None:
    """Why torch's kernels are the better choice for a call on the CPU that both engines serve, or None if not."""
    seconds = predicted(sizes)
    if seconds["aten"] >= seconds["numba"]:
        return None
    return compared("aten", seconds)


def compared(taken: str, seconds: dict[str, float]) -> str:
    """The times of both engines in words, that of the one that is taken first."""
    other = next(engine for engine in ENGINES if engine != taken)
    return f"predicted {told(seconds[taken])}, {other} {told(seconds[other])}"


def told(seconds: float) -> str:
    """In words, to two digits or three."""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def predicted(sizes: Sizes) -> dict[str, float]:
    """The seconds that a call takes by each engine."""
    cell, steps, batch, inputs, hidden, outputs, directions, layers, dtype, training, is_cell, threads = sizes
    numbers = int(steps), int(batch), int(inputs), int(hidden), int(outputs), directions, layers
    first = Sizes(cell, *numbers, dtype, training, is_cell, threads or torch.get_num_threads())
    numba, aten = rows(first)
    counts = terms(first)
    if layers > 1:
        others = terms(first._replace(inputs=directions * first.outputs))
        counts = tuple([one + (layers - 1) * other for one, other in zip(counts, others, strict=True)])
    return {"numba": _sum(counts, TABLE[numba]), "aten": _sum(counts, TABLE[aten])}


def _sum(counts: Sequence[float], row: Sequence[float]) -> float:
    seconds: float = sum(map(mul, counts, row))
    return seconds


def rows(sizes: Sizes) -> tuple[str, str]:
    """Which row of the table each engine's way has: way, cell and dtype."""
    cell_name, steps, batch, _, hidden, outputs, directions, layers, dtype, training, is_cell, _ = sizes
    usual = directions == 1 and outputs == hidden
    is_step = usual and steps == 1 and layers == 1
    few = usual and not training and dtype in unpacked.DTYPES and unpacked.pays(steps, batch, hidden)
    of_cell = is_cell and training and dtype in unpacked.DTYPES
    return _names(cell_name, outputs != hidden, is_step, few, training, of_cell, dtype)


@cache
def _names(
    cell_name: str, projected: bool, is_step: bool, few: bool, training: bool, of_cell: bool, dtype: torch.dtype
) -> tuple[str, str]:
    numba = "step, training" if of_cell else "training" if training else "unpacked" if few else "packed"
    aten = ("step" if is_step else "sequence") + ", training" * training
    # rnn_relu differs from rnn_tanh in its activation only, and has no rows of its own.
    of = f"{cell_name.replace('relu', 'tanh')}{' projected' * projected} {DTYPES[dtype]}"
    return f"numba {numba}: {of}", f"aten {aten}: {of}"


TERMS = (
    "call of a layer",
    "call of a cell",
    "step",
    "multiplication of the input, shared",
    "multiplication of the input, alone",
    "multiplication of the state, shared",
    "multiplication of the state, alone",
    "multiplication of rows that lie across the lines of a cache",
    "byte of weights",
    "byte of recurrent weights in a step",
    "byte of them beyond the cache",
    "gate, shared",
    "gate, alone",
    "byte of input",
    "byte of input beyond what is used again",
    "byte of gates beyond what is used again",
)
"""What times are made of. Shared means that as many threads as there is work for do it; where all points are of one
thread, so that nothing tells the two apart, the fit takes the one that comes first."""


def terms(sizes: Sizes) -> tuple[float, ...]:
    """How often a layer does what `TERMS` names."""
    cell_name, steps, batch, inputs, hidden, outputs, directions, _, dtype, _, is_cell, threads = sizes
    item = 8 if dtype is torch.float64 else 4
    padded = -hidden // (UNITS // item) * -(UNITS // item)
    cell = KNOWN[cell_name]
    columns, of_state = (directions * len(gates) * padded for gates in (cell.x_gates, cell.u_gates))
    rows = steps * batch
    weights = of_state * outputs + (directions * outputs * padded if outputs != hidden else 0)
    # In float64 a vector holds half as many numbers.
    fed, recurrent = rows * columns * inputs * item / 4, rows * weights * item / 4
    across = (fed if inputs * item % UNITS else 0.0) + (recurrent if outputs * item % UNITS else 0.0)
    used = min(threads, max(1.0, (fed + recurrent) / WORK_PER_THREAD))
    size = weights * item
    return (
        0.0 if is_cell else 1.0,
        1.0 if is_cell else 0.0,
        steps * directions,
        fed / used,
        fed,
        recurrent / used,
        recurrent,
        across / used,
        columns * inputs * item + size,
        steps * size / used,
        steps * max(0, size - CACHE),
        rows * columns / used,
        rows * columns,
        rows * inputs * item,
        max(0, rows * inputs * item - LARGE),
        max(0, rows * columns * item - LARGE),
    )
