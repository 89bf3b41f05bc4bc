"""Whether a launch is shared among threads now: not while other programs want their processors.

Where all processors are busy, a thread that is to help waits for one, and the caller waits for that thread: a whole
time slice of the scheduler, some milliseconds, in a call that may take 50 us. No time in the call before tells that it
will be so. So launches are timed, both ways while they are new, and one that took longer shared than alone makes short
launches stay alone for a while, which is twice as long each time that it was too short.

A short launch that two threads share takes 0.5 to 0.9 of its time alone; what it may lose is a hundredfold.
"""

from __future__ import annotations

from math import inf
from time import perf_counter

SPOILED = 1.5
"""Times what it takes alone: from there on a shared launch had neighbours. What the system itself does now and then,
or a colder cache, takes less."""
TRIALS = 4
"""Launches of a new kind: shared and alone in turns, the first of both being cold."""
SECOND_CHANCE = 256
"""A launch that was faster alone is shared once in so many."""
SECONDS_PER_PRODUCT = 2e-11
"""What a multiplication takes one thread, more or less."""
LONG = 0.01
"""Seconds alone, from which on threads are worth waiting for: two that have half a processor each take as long as one
that has a whole one."""
LONG_TEAM = 0.05
"""As LONG, for threads that meet after every step, and may wait several times. Longer launches are not tried alone."""
SHORTEST, LONGEST = 0.005, 1.0
"""Seconds that short launches stay alone."""
STEADY = 10
"""A pause was too short where another is needed within so many of it."""


class Pace:
    """How many seconds launches of one kind take.

    Args:
        likely: how many one takes alone, as far as is known without timing any.
        meets: whether threads that share one meet after every step.
    """

    __slots__ = ("alone", "launches", "likely", "long", "shared")

    def __init__(self, likely: float, meets: bool = False) -> None:
        self.alone = self.shared = inf
        """at best; infinite before the first"""
        self.likely = likely
        self.long = LONG_TEAM if meets else LONG
        self.launches = 0


class _Pause:
    """For how long no launch is shared. Of several threads that change it at once one wins, which is good enough."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.end = -inf


_pause = _Pause()


def is_welcome(pace: Pace) -> bool:
    """Whether the next launch is to be shared."""
    if perf_counter() < _pause.end and pace.likely < pace.long:
        return False
    if pace.launches < TRIALS and pace.likely < LONG_TEAM:
        return pace.launches % 2 == 0
    return pace.shared <= pace.alone or pace.launches % SECOND_CHANCE == 0


def shared(pace: Pace, began: float) -> None:
    """Takes note of a shared launch that began at that time of `perf_counter` and has just ended."""
    now = perf_counter()
    seconds = now - began
    pace.launches += 1
    if seconds < pace.shared:
        pace.shared = seconds
    if seconds > SPOILED * pace.alone:
        too_short = now < _pause.end + STEADY * _pause.seconds
        _pause.seconds = min(2 * _pause.seconds, LONGEST) if too_short else SHORTEST
        _pause.end = now + _pause.seconds


def alone(pace: Pace, began: float) -> None:
    """Takes note of one that one thread did by itself, as `shared`."""
    pace.launches += 1
    pace.alone = pace.likely = min(pace.alone, perf_counter() - began)
