"""What goes to a contender's process: plain values and NumPy arrays, since most of them load no torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.task import Array, Task

FLOAT32, FLOAT16, INT8 = WEIGHTS = ("float32", "float16", "int8")
"""How weights are kept; what enters and leaves is float32 throughout."""


class ServingTask(NamedTuple):
    """A layer or several, in one direction, whose calls take over the states of the calls before."""

    cell: str
    """As in `benchmarks.peers.task.Task`."""
    layers: int
    parameters: dict[str, Array]
    """By torch.nn's names; gates in torch's order."""
    x: Array
    """(calls, T, B, I): what the calls are given, in turn. An even number of them."""
    weights: str
    """Of WEIGHTS."""
    threads: int
    rows: NDArray[np.int64] | None = None
    """(calls, B): of `slots` streams the different ones that a call steps; None where every call steps the same B."""
    slots: int = 0

    @property
    def hidden_size(self) -> int:
        return int(self.parameters["weight_hh_l0"].shape[1])

    @property
    def of_peers(self) -> Task:
        """The same for `benchmarks.peers`: calls of T steps, one after the other."""
        _, T, B, I = self.x.shape
        steps = self.x.reshape(-1, B, I)
        return Task(self.cell, self.layers, False, self.parameters, steps, True, self.threads, chunk=T)
