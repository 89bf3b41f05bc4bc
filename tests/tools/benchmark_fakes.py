"""What the tests of the benchmark suite share: a tiny case, a contender that errs on purpose, and a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch

from benchmarks import timing
from benchmarks.cases import Case, Problem, parse_shape
from benchmarks.contenders import Run, TorchNN

TINY = "3x2x4x5"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BRIEF = 0.02
"""Seconds for the times of a case: five rounds."""


def tiny(cell: str = "gru", mode: str = "inference", **more: object) -> Case:
    return Case(cell, mode, parse_shape(TINY), **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Planted:
    """torch.nn, with what it returns passed through `change`."""

    change: Callable[[list[torch.Tensor]], list[torch.Tensor]]
    name: str = "planted"

    def build(self, problem: Problem) -> Run:
        run = TorchNN().build(problem._replace(resets=None))
        return lambda: self.change([tensor.clone() for tensor in run()])


def nan_in_one_place(results: list[torch.Tensor]) -> list[torch.Tensor]:
    results[0].view(-1)[0] = torch.nan
    return results


class FakeClock:
    """Time passes only in the functions that it makes: one takes the given seconds, in turn, call by call."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def function(self, name: str, *seconds: float) -> Callable[[], None]:
        durations = cycle(seconds)

        def call() -> None:
            self.now += next(durations)
            self.calls.append(name)

        return call

    def burst(self, function: Callable[[], object], calls: int) -> float:
        return timing.wall_burst(function, calls, clock=self)
