"""Whether a launch is shared among threads now: not while other programs want their processors.

Where all processors are busy, a thread that is to help waits for one, and the caller waits for that thread: a whole
time slice of the scheduler, some milliseconds, in a call that may take 50 us. No time in the call before tells that it
will be so. A short launch that two threads share takes 0.5 to 0.9 of its time alone; what it may lose is a hundredfold.

So launches are timed, shared and alone, and accounts are kept: what sharing has gained over working alone is credit for
what it may lose. Where a loss exceeds the credit, short launches stay alone for a while that is long enough to make up
for it.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from math import inf
from time import perf_counter

TRIALS = 4
"""Launches of a new kind: shared and alone in turns, the first of both being cold."""
SECOND_CHANCE = 64
"""A kind that is faster alone is shared twice in so many launches; the first finds sleeping threads."""
AWAKE = 0.001
"""Seconds after a shared launch for which threads look for the next one before they sleep; some runtimes' do longer."""
WAKING = 0.0003
"""Seconds that it may take to wake them."""
SPOILED = 1.5
"""Times what a launch takes alone: more is no measure of what it takes shared, but of neighbours."""
CREDIT = 0.01
"""Seconds at most: a time slice or two."""
REST = 40
"""Times a loss: for so long short launches stay alone, so that losses remain a fortieth of the time."""
LONGEST = 1.0
"""Seconds of that at most."""
SECONDS_PER_PRODUCT = 2e-11
"""What a multiplication takes one thread, more or less."""
TRIED, TRIED_TEAM = 0.002, 0.01
"""Seconds alone, up to which launches are made alone only to know how long it takes: where there are many threads, a
longer one costs too much. Threads that meet after every step have more to lose."""
LONG, LONG_TEAM = 0.01, 0.05
"""Seconds alone, from which on threads are worth waiting for: two that have half a processor each take as long as one
that has a whole one. Those that meet may wait several times."""
KINDS = 1024
"""How many are kept."""


class Times:
    """What launches of one kind have taken of late, in what was likely; infinite before the first."""

    __slots__ = ("alone", "launches", "shared")

    def __init__(self) -> None:
        self.alone = inf
        self.shared = [inf, inf]
        """by threads that were awake, and that slept"""
        self.launches = 0


@lru_cache(KINDS)
def _times(kind: Hashable) -> Times:
    return Times()


class Pace:
    """How long launches of one plan take.

    Args:
        kind: what tells them from those of other plans, but for the number of steps, which differs from call to call.
        steps: that number; kinds are told apart by its binary digits.
        likely: how many seconds a launch takes alone, as far as is known without timing any.
        threads: how many share one.
        meets: whether they meet after every step.
    """

    __slots__ = ("likely", "long", "threads", "times", "tried")

    def __init__(self, kind: Hashable, steps: int, likely: float, threads: int, meets: bool = False) -> None:
        self.times = _times((kind, threads, steps.bit_length()))
        self.likely, self.threads = likely, threads
        self.long = LONG_TEAM if meets else LONG
        self.tried = likely < (TRIED_TEAM if meets else TRIED)

    @property
    def is_long(self) -> bool:
        alone = self.times.alone
        return self.likely * (alone if alone < inf else 1) >= self.long


class _Process:
    """What all launches share. Of two threads that change it at once one wins, which is good enough."""

    def __init__(self) -> None:
        self.shared = -inf
        """when the last shared launch ended"""
        self.credit = 0.0
        self.lost = self.end = -inf
        """when there was the last loss that credit did not cover, and until when short launches stay alone for it"""


_process = _Process()


def is_welcome(pace: Pace) -> bool:
    """Whether the next launch is to be shared."""
    times, now = pace.times, perf_counter()
    if now < _process.end and not pace.is_long:
        return False
    shared = times.shared[now - _process.shared > AWAKE]
    if pace.tried and min(times.shared) < inf and (times.alone == inf or times.launches < TRIALS):
        return times.alone < inf and times.launches % 2 == 0
    return shared == inf or shared <= times.alone or times.launches % SECOND_CHANCE < 2


def shared(pace: Pace, seconds: float) -> None:
    """Takes note of a shared launch that has just ended."""
    times, now, took = pace.times, perf_counter(), seconds / pace.likely
    slept = now - seconds - _process.shared > AWAKE
    waking = slept * WAKING / pace.likely
    alone = times.alone if times.alone < inf else pace.threads * min(times.shared)
    _process.shared = now
    times.launches += 1
    if took <= SPOILED * alone + waking:
        times.shared[slept] = _of_late(times.shared[slept], took)
    if alone == inf or pace.is_long or now - seconds < _process.lost:  # what began before a loss tells nothing new
        return
    _process.credit = min(CREDIT, _process.credit + pace.likely * (alone - max(0.0, took - waking)))
    if _process.credit < 0:
        _process.lost, _process.end = now, now + min(LONGEST, REST * -_process.credit)
        _process.credit = 0.0


def alone(pace: Pace, seconds: float) -> None:
    """Takes note of one that one thread did by itself."""
    pace.times.launches += 1
    pace.times.alone = _of_late(pace.times.alone, seconds / pace.likely)


def _of_late(before: float, took: float) -> float:
    """A time that was better counts as it is; one that was worse by half, since much can make it so."""
    return took if took < before else (before + took) / 2 if before < inf else took
