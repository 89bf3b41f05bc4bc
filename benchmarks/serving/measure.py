"""Everybody at one point: first whether its values are right, then its calls' times, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.busy import Competitors
from benchmarks.peers.contender import TOLERANCE
from benchmarks.peers.process import PeerFailed, PeerProcess
from benchmarks.peers.rest import rest
from benchmarks.serving.contenders import Contender
from benchmarks.serving.points import Point, make_task, truth
from benchmarks.serving.task import FLOAT16, FLOAT32, INT8
from tests.tolerances import relative_error

WORKER = "benchmarks.serving.worker"
TOLERANCES = {FLOAT32: TOLERANCE, FLOAT16: 2e-3, INT8: 5e-2}
"""Relative errors that are allowed by weights. In int8 the peers' are 0.01 to 0.02."""
ROUNDS = 3
WARM_UP_SECONDS = 0.05
TIMEOUT_SECONDS = 300.0
"""For an answer: making a first stream compiles its kernel, for half a minute on a busy machine."""


class Condition(NamedTuple):
    """How calls follow each other, and beside what."""

    option: str
    name: str
    pause: float
    """Seconds that the process sleeps before a call."""
    busy: bool
    """Whether a process for each core computes meanwhile."""
    share: int
    """Of the time, in proportion: calls with pauses are few."""


PAUSE = 0.01
ROW, PAUSED, BUSY_ROW, BUSY_PAUSED = CONDITIONS = (
    Condition("row", "in a row", 0, False, 1),
    Condition("paused", "every 10 ms", PAUSE, False, 4),
    Condition("busy-row", "busy, in a row", 0, True, 1),
    Condition("busy-paused", "busy, every 10 ms", PAUSE, True, 4),
)


class Entry(NamedTuple):
    """A contender with one kind of weights and one number of threads."""

    contender: Contender
    weights: str
    threads: int

    @property
    def key(self) -> str:
        return f"{self.contender.name}, {self.weights}, {self.threads} threads"


class Row(NamedTuple):
    """The times of one entry's calls at one point under one condition, in seconds."""

    point: Point
    contender: str
    is_ours: bool
    weights: str
    threads: int
    condition: str
    calls: int
    median: float
    q1: float
    q3: float
    p99: float
    error: float
    """Of the values: ‖y − truth‖ / ‖truth‖."""


class Processes:
    """A process for each contender, started when it is first needed; they end with the block."""

    def __init__(self) -> None:
        self.of: dict[str, PeerProcess] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.of.values():
            process.close()

    def ask(self, contender: Contender, method: str, *arguments: Any) -> Any:
        """As `PeerProcess.ask`."""
        if contender.name not in self.of:
            self.of[contender.name] = PeerProcess(contender.name, contender.engine, TIMEOUT_SECONDS, WORKER)
        return self.of[contender.name].ask(method, *arguments)

    def forget(self) -> None:
        """Frees everybody's memory of the last point; who does not answer starts anew."""
        for process in self.of.values():
            if process.process is not None:
                with suppress(PeerFailed):
                    process.ask("forget")


def measure(
    point: Point,
    entries: Sequence[Entry],
    conditions: Sequence[Condition],
    processes: Processes,
    competitors: Competitors,
    budget: float,
) -> tuple[list[Row], list[str]]:
    """The rows of those who compute the right values, and what was wrong with the others."""
    failures: list[str] = []
    errors: dict[Entry, float] = {}
    for entry in entries:
        try:
            errors[entry] = check(point, entry, processes)
        except (PeerFailed, ValueError) as error:
            failures.append(f"{point.label}: {entry.key}: {error}")
    rest()
    times: dict[tuple[Entry, Condition], list[Any]] = {}
    second = budget / max(1, len(errors)) / sum(one.share for one in conditions) / ROUNDS
    for _ in range(ROUNDS):
        for condition in conditions:
            with competitors.busy() if condition.busy else nullcontext():
                for entry in list(errors):
                    turn = entry.key, condition.share * second, condition.pause
                    try:
                        found = processes.ask(entry.contender, "times", *turn)
                    except PeerFailed as error:
                        failures.append(f"{point.label}: {entry.key}: {error}")
                        del errors[entry]
                        continue
                    times.setdefault((entry, condition), []).append(found)
    processes.forget()
    return [
        row(point, entry, condition, np.concatenate(found), errors[entry])
        for (entry, condition), found in times.items()
        if entry in errors
    ], failures


def check(point: Point, entry: Entry, processes: Processes) -> float:
    """Builds the entry's task and returns its values' relative error. Raises ValueError where that is too large."""
    contender, weights, threads = entry
    task = make_task(point, weights, threads, contender.takes_rows)
    processes.ask(contender, "build", entry.key, task)
    found = torch.from_numpy(processes.ask(contender, "outputs", entry.key))
    expected = truth(point, task)
    error = relative_error(found.reshape(expected.shape), expected)
    if not error <= TOLERANCES[weights]:
        raise ValueError(f"differs from torch.nn in float64 by {error:.2g}, allowed {TOLERANCES[weights]:g}")
    processes.ask(contender, "times", entry.key, WARM_UP_SECONDS, 0)
    return error


def row(point: Point, entry: Entry, condition: Condition, seconds: Any, error: float) -> Row:
    q1, median, q3, p99 = (float(value) for value in np.percentile(seconds, (25, 50, 75, 99)))
    contender, weights, threads = entry
    who = contender.name, contender.is_ours, weights, threads
    return Row(point, *who, condition.name, len(seconds), median, q1, q3, p99, error)


def best_peer(own: Row, rows: Sequence[Row]) -> Row | None:
    """The fastest of those who are not fastrnn, with weights that are no narrower and at most as many threads.

    So int8 is compared with int8 and float32 alike: torch's GRU, the only one in int8, is slower than float32's.
    """
    kinds = (FLOAT32, own.weights)
    peers = [
        one
        for one in rows
        if not one.is_ours
        and (one.point, one.condition) == (own.point, own.condition)
        and one.weights in kinds
        and one.threads <= own.threads
    ]
    return min(peers, key=lambda one: one.median, default=None)
