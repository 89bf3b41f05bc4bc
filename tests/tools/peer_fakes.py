"""Engines that stand for a peer's library in its process: one that computes with NumPy, and those that fail.

torch is not imported: a process with one of them is there in a tenth of a second.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.peers.buffers import Call
from benchmarks.peers.task import Array, Task

GOOD_CALLS = 40
"""After so many an engine that fails late fails: parity took one of a sequence, or STREAM_STEPS of one step each."""


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def step(cell: str, gx: Array, gh: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """The next h and c, from torch's equations."""
    if cell == "lstm":
        i, f, g, o = np.split(gx + gh, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    if cell == "gru":
        (xr, xz, xn), (hr, hz, hn) = np.split(gx, 3, axis=-1), np.split(gh, 3, axis=-1)
        z, n = sigmoid(xz + hz), np.tanh(xn + sigmoid(xr + hr) * hn)
        return (1 - z) * n + z * h, c
    a = gx + gh
    return (np.tanh(a) if cell == "rnn_tanh" else np.maximum(a, 0)), c


class WithNumPy:
    """One layer in one direction."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.calls = 0

    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Call:
        return lambda: self.compute(inputs, outputs)

    def compute(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        self.calls += 1
        weights = self.task.weights
        zeros = np.zeros(self.task.state_shape, np.float32)
        h, c = (inputs.get(f"{state}0_l0", zeros)[0] for state in "hc")
        for t, x in enumerate(inputs["x"]):
            gx = x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
            gh = h @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]
            h, c = step(self.task.cell, gx, gh, h, c)
            if "ys" in outputs:
                outputs["ys"][t] = h
        for state, value in zip(self.task.states, (h, c), strict=False):
            outputs[f"{state}n_l0"][0] = value


class Unimportable:
    def __init__(self, task: Task) -> None:
        raise ImportError("libpeer.so.1: cannot open shared object file")


class SlightlyWrong(WithNumPy):
    def compute(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        super().compute(inputs, outputs)
        outputs["hn_l0"] *= 1.001


class WritesNothing(WithNumPy):
    def compute(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        pass


class Failing(WithNumPy):
    """Computes GOOD_CALLS times, then fails."""

    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Call:
        compute = super().bind(inputs, outputs)
        return lambda: compute() if self.calls < GOOD_CALLS else self.fail()

    def fail(self) -> None:
        raise ArithmeticError("no more")


class Dying(Failing):
    def fail(self) -> None:
        print("peer: assertion failed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


class Leaving(Failing):
    def fail(self) -> None:
        os._exit(3)


class Hanging(Failing):
    def fail(self) -> None:
        time.sleep(3600)


class HangingAtOnce(WithNumPy):
    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Callable[[], None]:
        time.sleep(3600)
        raise AssertionError("an hour has gone by")
