"""Contenders that stand for a library in its process: those that compute with NumPy, and those that err.

torch is not imported: a process with one of them is there in a tenth of a second.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.task import Array
from benchmarks.serving.session import Bound, Session
from benchmarks.serving.task import ServingTask
from tests.tools import peer_fakes


def bound(task: ServingTask) -> Bound:
    return Bound(peer_fakes.WithNumPy(task.of_peers), task)


def slightly_wrong(task: ServingTask) -> Bound:
    return Bound(peer_fakes.SlightlyWrong(task.of_peers), task)


def writes_nothing(task: ServingTask) -> Bound:
    return Bound(peer_fakes.WritesNothing(task.of_peers), task)


def failing(task: ServingTask) -> Bound:
    return Bound(peer_fakes.Failing(task.of_peers), task)


class Forgetful(peer_fakes.WithNumPy):
    """Begins every call with zero states."""

    def compute(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        super().compute({"x": inputs["x"]}, outputs)


def forgetful(task: ServingTask) -> Bound:
    return Bound(Forgetful(task.of_peers), task)


class Gathered(Session):
    """One step of a GRU for some of many streams."""

    def __init__(self, task: ServingTask) -> None:
        assert task.rows is not None
        self.parameters = task.parameters
        self.state = np.zeros((task.slots, task.hidden_size), np.float32)
        self.calls = [partial(self.call, x[0], rows) for x, rows in zip(task.x, task.rows, strict=True)]

    def call(self, x: Array, rows: Any) -> Array:
        gx, gh = (
            factor @ self.parameters[f"weight_{name}_l0"].T + self.parameters[f"bias_{name}_l0"]
            for name, factor in (("ih", x), ("hh", self.state[rows]))
        )
        self.state[rows], _ = peer_fakes.step("gru", gx, gh, self.state[rows], x)
        return self.state[rows]

    def reset(self) -> None:
        self.state.fill(0)

    def output(self, index: int, returned: Any) -> Array:
        return np.array(returned[None])
