"""Times of several runs, measured side by side, and what is said of them.

The runs take turns, A B A B, so that a machine that slows down slows all of them. A turn is a burst of calls, long
enough to dwarf the timer and the interruptions of the system; each round gives one time a call for every run, and the
rounds' ratios are paired.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

BURST_SECONDS = 0.005
"""Some 10⁴ times the resolution of the clock, and longer than a scheduler's usual slice of a few milliseconds."""
SETTLE_SHARE = 0.2
"""Of a burst's calls, how many run untimed before it: caches come back and threads wake up. The runs of this process
share one pool of OpenMP's threads, which spin on for 9 ms after a run and so take no core from the next one; a run in
another process waits until they sleep (`benchmarks.peers`)."""
MIN_ROUNDS = 5
"""The fewest that quartiles mean something for, whatever the budget."""
MAX_ROUNDS = 1000
WARM_UP_SECONDS = 0.1
"""After the first call, which compiles: allocators, caches and the clock rate of the processor settle."""

Burst = Callable[[Callable[[], object], int], float]
"""Calls a function a number of times and returns the seconds that took."""
Turn = Callable[[int, int], tuple[float, float]]
"""As `TimesItself.turn`."""


@runtime_checkable
class TimesItself(Protocol):
    """A function that runs elsewhere, where its time must be taken."""

    def turn(self, untimed: int, timed: int) -> tuple[float, float]:
        """Calls it so many times, one kind after the other, and returns the seconds that each kind took."""
        ...


class CallFailed(Exception):
    """A function raised while it was timed; its error is the cause."""

    def __init__(self, index: int) -> None:
        super().__init__(f"function {index}")
        self.index = index


class Summary(NamedTuple):
    """The middle half of a sample."""

    median: float
    q1: float
    q3: float


class Timing(NamedTuple):
    """One run's times."""

    seconds: list[float]
    """Of a call, one for each round."""
    calls: int
    """In each round's burst."""


def wall_burst(function: Callable[[], object], calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The burst of a function that has finished when it returns, by `clock`, in seconds."""
    start = clock()
    for _ in range(calls):
        function()
    return clock() - start


def interleave(
    functions: Sequence[Callable[[], object]],
    budget: float,
    burst: Burst = wall_burst,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: float = WARM_UP_SECONDS,
) -> list[Timing]:
    """Times of `functions`, measured in turns for about `budget` seconds in all but for at least MIN_ROUNDS rounds.

    The budget is of `clock`, since bursts on a GPU leave out what they do between calls. A function that is
    `TimesItself` does without `burst`. Raises CallFailed.
    """
    turns = [turn_of(index, function, burst) for index, function in enumerate(functions)]
    with no_garbage_collection():
        calls = [calibrate(turn, warm_up) for turn in turns]
        seconds: list[list[float]] = [[] for _ in functions]
        began, rounds = clock(), 0
        while rounds < MIN_ROUNDS or (clock() - began < budget and rounds < MAX_ROUNDS):
            for turn, count, times in zip(turns, calls, seconds, strict=True):
                _, elapsed = turn(math.ceil(SETTLE_SHARE * count) if count > 1 else 0, count)
                times.append(elapsed / count)
            rounds += 1
    return [Timing(times, count) for times, count in zip(seconds, calls, strict=True)]


def turn_of(index: int, function: Callable[[], object], burst: Burst) -> Turn:
    """How `function`, the one with that index, takes its turns. They raise CallFailed."""

    def turn(untimed: int, timed: int) -> tuple[float, float]:
        try:
            if isinstance(function, TimesItself):
                return function.turn(untimed, timed)
            return burst(function, untimed) if untimed else 0.0, burst(function, timed)
        except Exception as error:
            raise CallFailed(index) from error

    return turn


def calibrate(turn: Turn, warm_up: float = WARM_UP_SECONDS) -> int:
    """Warms a function up for so many seconds and returns how many calls fill BURST_SECONDS."""
    turn(0, 1)
    calls, spent = 1, 0.0
    while True:
        _, elapsed = turn(0, calls)
        spent += elapsed
        if elapsed < BURST_SECONDS:
            calls *= 2
        elif spent >= warm_up:
            return max(1, math.ceil(calls * BURST_SECONDS / elapsed))


def summarize(sample: Sequence[float]) -> Summary:
    """Median and quartiles, interpolated within the sample."""
    if len(sample) == 1:
        return Summary(sample[0], sample[0], sample[0])
    q1, median, q3 = statistics.quantiles(sample, n=4, method="inclusive")
    return Summary(median, q1, q3)


def ratio(numerator: Timing, denominator: Timing) -> Summary:
    """The ratio of the medians, and the quartiles of the ratios within each round.

    The quartiles need not enclose the ratio of the medians, but they do unless the spread is wide.
    """
    paired = summarize([a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)])
    medians = statistics.median(numerator.seconds) / statistics.median(denominator.seconds)
    return Summary(medians, paired.q1, paired.q3)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keeps the cyclic collector from running, after one collection, until the end of the block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
