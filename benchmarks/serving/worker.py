"""A contender's process: `python -m benchmarks.serving.worker MODULE:CLASS DESCRIPTOR`.

See `benchmarks.peers.worker`, whose answers it gives.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.rest import rest
from benchmarks.peers.task import Array
from benchmarks.peers.worker import main
from benchmarks.serving.session import Call, Session
from benchmarks.serving.task import ServingTask
from benchmarks.timing import SETTLE_SHARE

SETTLING_PAUSES = 2
"""Untimed calls before those with pauses: after a turn in a row the pause is what has to be got used to."""


class Worker:
    """One contender, with the tasks that it was given: the same one with other weights and other numbers of threads."""

    def __init__(self, path: str) -> None:
        module, name = path.split(":")
        self.kind: Callable[[ServingTask], Session] = getattr(importlib.import_module(module), name)
        self.sessions: dict[str, Session] = {}

    def build(self, key: str, task: ServingTask) -> None:
        self.sessions[key] = self.kind(task)

    def forget(self) -> None:
        """Frees all tasks' memory."""
        self.sessions.clear()
        gc.collect()

    def outputs(self, key: str) -> Array:
        """Of every call in turn, from zero states: (calls, T, B, H)."""
        session = self.sessions[key]
        with session.context():
            session.reset()
            return np.stack([session.output(index, call()) for index, call in enumerate(session.calls)])

    def times(self, key: str, seconds: float, pause: float) -> NDArray[np.float64]:
        """The seconds of each call, of as many as are begun within `seconds`, at least one, with pauses before each.

        Other sessions' threads sleep by then.
        """
        rest()
        session = self.sessions[key]
        with session.context():
            turns = cycle(session.calls)
            if pause:
                paused(islice(turns, SETTLING_PAUSES), float("inf"), pause)
                return np.array(paused(turns, seconds, pause))
            in_a_row(turns, SETTLE_SHARE * seconds)
            return np.array(in_a_row(turns, seconds))


def in_a_row(turns: Iterator[Call], seconds: float) -> list[float]:
    """Times of calls without anything between: some 0.1 µs of each are the loop and the clock."""
    times = []
    clock = time.perf_counter
    now = clock()
    end = now + seconds
    for call in turns:
        began = now
        call()
        now = clock()
        times.append(now - began)
        if now >= end:
            break
    return times


def paused(turns: Iterator[Call], seconds: float, pause: float) -> list[float]:
    """Times of calls before each of which the process sleeps."""
    times = []
    clock = time.perf_counter
    end = clock() + seconds
    for call in turns:
        time.sleep(pause)
        began = clock()
        call()
        now = clock()
        times.append(now - began)
        if now >= end:
            break
    return times


if __name__ == "__main__":
    main(*sys.argv[1:], kind=Worker)
