"""Calls of a point by either engine, or by the one that `auto` chooses, timed in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import fastrnn
from benchmarks import timing
from benchmarks.cases import MODULES
from benchmarks.contenders import Run
from benchmarks.cost.points import Point
from benchmarks.timing import Timing
from fastrnn.backends import cost
from fastrnn.cells import CELLS

ENGINES = ("numba", "aten")
WARM_UP_SECONDS = 0.03
LOOP = 8
"""Steps of a cell that trains, before a backward."""
WARM_UP_CALLS = 10
"""Threads that share a launch have their first ones timed, shared and alone (`fastrnn.backends.numba.sharing`)."""


class Racer:
    """A repeated call by `auto` with one of the engines chosen for it, or with the choice left to it.

    Not by an engine's name: what `auto` takes is what is to be timed, with what it costs to take it.
    """

    def __init__(self, point: Point, engine: str | None) -> None:
        self._engine, self._run = engine, build(point)
        # What a lone thread computes is the same, whoever else is at work: no waiting for processors counts.
        self._clock = time.process_time if point.threads == 1 else time.perf_counter
        spent = 0.0
        for _ in range(WARM_UP_CALLS):
            if spent < WARM_UP_SECONDS:
                spent += self.turn(1, 0)[0]

    def __call__(self) -> object:
        with preferring(self._engine):
            return self._run()

    def turn(self, untimed: int, timed: int) -> tuple[float, float]:
        """As `timing.TimesItself`."""
        with preferring(self._engine):
            untimed_seconds = timing.wall_burst(self._run, untimed, self._clock)
            return untimed_seconds, timing.wall_burst(self._run, timed, self._clock)


def race(point: Point, engines: Sequence[str | None], budget: float) -> list[Timing]:
    """The times of calls by each engine, or by the one that is chosen where it is None, in turns."""
    with threads(point.threads), point.grad_mode():
        racers = [Racer(point, engine) for engine in engines]
        taken = timing.interleave(racers, budget, warm_up=WARM_UP_SECONDS)
    steps = LOOP if point.is_cell and point.training else 1
    return [Timing([seconds / steps for seconds in one.seconds], one.calls) for one in taken]


def build(point: Point) -> Run:
    """A call of the point's module, in training with backward: the gradients of the input and all parameters.

    Of a cell that trains it is a loop of `LOOP` steps with one backward, which is how they are trained.

    Weights and data are the same for all runs of a point.
    """
    dtype = getattr(torch, point.dtype)
    name, keywords = MODULES[point.cell]
    extra: dict[str, Any] = {"dtype": dtype, "backend": "auto", **keywords}
    if not point.is_cell:
        extra |= {"bidirectional": point.directions > 1} | ({"proj_size": point.P} if point.P else {})
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(fastrnn, f"{name}{'Cell' if point.is_cell else ''}")(point.I, point.H, **extra)
        rows = (point.B,) if point.is_cell else (point.T, point.B)
        x = torch.randn(*rows, point.I).to(dtype).requires_grad_(point.training)
        dy = torch.randn(*rows, point.directions * (point.P or point.H)).to(dtype)
        states = tuple(torch.zeros(point.B, point.H, dtype=dtype) for _ in CELLS[point.cell].states)
    # A cell in a loop is given what it returned for the step before.
    given = ((states if len(states) > 1 else states[0]),) if point.is_cell else ()
    parameters = (x, *module.parameters())

    def infer() -> Any:
        return module(x, *given)

    def train() -> Any:
        results = module(x, *given)
        for _ in range(LOOP - 1 if point.is_cell else 0):
            results = module(x, results)
        return torch.autograd.grad(results if isinstance(results, Tensor) else results[0], parameters, dy)

    return train if point.training else infer


@contextmanager
def preferring(engine: str | None) -> Iterator[None]:
    """Within the block `auto` takes `engine` where it can, whatever is predicted; None leaves it the choice."""
    if engine is None:
        yield
        return
    usual = cost.predicted
    cost.predicted = lambda sizes: {name: 1.0 if name == engine else math.inf for name in ENGINES}
    try:
        yield
    finally:
        cost.predicted = usual


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block torch computes with so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
