"""The memory that a task's calls read and write, all of it there before the first call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from benchmarks.peers.task import Array, Task

ALIGNMENT = 64
"""Bytes: a cache line, and what torch gives its tensors; NumPy promises 16."""

Call = Callable[[], object]


class Engine(Protocol):
    """A peer's library with a model loaded."""

    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Call:
        """A call of the model that reads `inputs` and writes `outputs`, by name, where they lie.

        The caller keeps the arrays.
        """
        ...


@runtime_checkable
class Runs(Protocol):
    """What performs a task."""

    def run(self) -> None:
        """Performs it once."""
        ...

    def poison(self) -> None:
        """Spoils what the next run must write."""
        ...

    def results(self) -> list[Array]:
        """What the last run gave."""
        ...


class Session:
    """A task's calls on an engine, and their memory."""

    def __init__(self, engine: Engine, task: Task) -> None:
        self.task = task
        self.x = aligned(task.x.shape)
        self.x[...] = task.x
        self.finals = {name: aligned(task.state_shape) for name in task.state_outputs}
        self.between: list[Array] = []
        """In streaming, the states that the first step reads, zero, and the other place that steps write to."""
        self.ys: Array | None = None
        self.calls = self.steps(engine) if task.streaming else [self.sequence(engine)]

    def sequence(self, engine: Engine) -> Call:
        """The one call of a whole sequence."""
        T, B, _ = self.x.shape
        self.ys = aligned((T, B, self.task.directions * self.task.hidden_size))
        return engine.bind({"x": self.x}, {"ys": self.ys, **self.finals})

    def steps(self, engine: Engine) -> list[Call]:
        """A call for each step of x, which reads the states where the step before wrote them.

        Steps write in turn to two places, the last one to `finals`.
        """
        names = self.task.state_inputs
        zeros, other = ([aligned(self.task.state_shape) for _ in names] for _ in range(2))
        self.between = [*zeros, *other]
        calls, before = [], zeros
        for t in range(len(self.x)):
            is_last_place = (len(self.x) - 1 - t) % 2 == 0
            after = list(self.finals.values()) if is_last_place else other
            inputs = {"x": self.x[t : t + 1], **dict(zip(names, before, strict=True))}
            calls.append(engine.bind(inputs, dict(zip(self.finals, after, strict=True))))
            before = after
        return calls

    def run(self) -> None:
        """Performs the task once."""
        for call in self.calls:
            call()

    def poison(self) -> None:
        """Fills what the next run must write with NaN."""
        for array in (*self.finals.values(), *(() if self.ys is None else (self.ys,))):
            array.fill(np.nan)

    def results(self) -> list[Array]:
        """ys, which is the last step's output in streaming, then h_n and for LSTM c_n, (layers·directions, B, H)."""
        finals, layers = list(self.finals.values()), self.task.layers
        stacked = [np.concatenate(finals[start : start + layers]) for start in range(0, len(finals), layers)]
        return [(finals[layers - 1] if self.ys is None else self.ys).copy(), *stacked]


def aligned(shape: Sequence[int]) -> Array:
    """Zeros that begin at a multiple of ALIGNMENT."""
    size, item = math.prod(shape), np.dtype(np.float32).itemsize
    memory = np.zeros(size + ALIGNMENT // item, np.float32)
    start = -memory.ctypes.data % ALIGNMENT // item
    return memory[start : start + size].reshape(shape)
