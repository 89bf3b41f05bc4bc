"""Threads share a launch only while that pays, and part where one of them is waited for too long."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", exc_type=ImportError)

from fastrnn.backends import numba as backend
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.backends.numba import forward_plan, launch, layer_backward, sharing, unpacked
from fastrnn.backends.numba.sharing import LONGEST, SHORTEST, TRIALS, Pace
from tests.layers import Shape, cast, random_layer


class Machine:
    """Launches of one kind by a clock of their own: what they take shared and alone, and how they were made."""

    def __init__(self, shared: float, alone: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = {True: shared, False: alone}
        self.now = 100.0
        self.pace = Pace(alone)
        monkeypatch.setattr(sharing, "perf_counter", lambda: self.now)
        monkeypatch.setattr(sharing, "_pause", sharing._Pause())

    def launch(self, pace: Pace | None = None) -> bool:
        """Whether it was shared."""
        pace = pace or self.pace
        welcome, began = sharing.is_welcome(pace), self.now
        self.now += self.seconds[welcome]
        (sharing.shared if welcome else sharing.alone)(pace, began)
        return welcome

    def launches(self, count: int) -> list[bool]:
        return [self.launch() for _ in range(count)]


def test_a_new_kind_is_tried_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    assert machine.launches(TRIALS + 6) == [True, False, True, False] + [True] * 6


def test_what_is_faster_alone_stays_alone_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=60e-6, alone=50e-6, monkeypatch=monkeypatch)
    assert machine.launches(600)[TRIALS:].count(True) == 2
    machine.seconds[True] = 30e-6
    machine.launches(300)
    assert all(machine.launches(10))


def test_a_long_launch_is_not_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(Machine(shared=0.5, alone=1.0, monkeypatch=monkeypatch).launches(10))


def test_neighbours_cost_a_few_launches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    machine.launches(100)
    machine.seconds = {True: 8e-3, False: 120e-6}
    began = machine.now
    waits = 0
    while machine.now < began + 20:
        waits += machine.launch()
    assert 15 <= waits < 40  # at pauses of 5 ms, 10 ms, ... and then of a second
    machine.seconds = {True: 40e-6, False: 60e-6}
    machine.now += LONGEST
    assert all(machine.launches(10)), "the neighbours have gone"


def test_a_single_wait_makes_a_short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    machine.launches(10)
    for _ in range(5):
        machine.seconds[True] = 1e-3
        assert machine.launch()
        machine.seconds[True] = 40e-6
        ended = machine.now
        assert not machine.launch()
        while not machine.launch():
            pass
        assert machine.now - ended == pytest.approx(SHORTEST, rel=0.1)
        machine.now += 1


def test_neighbours_of_one_kind_are_those_of_other_short_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    machine.launches(10)
    machine.seconds[True] = 8e-3
    assert machine.launch()
    assert not machine.launch(Pace(60e-6))
    assert not machine.launch(Pace(sharing.LONG, meets=True))
    assert machine.launch(Pace(sharing.LONG)), "a thread that has half a processor is worth waiting for once"


_functions = launch.team_functions


@dataclass
class Team:
    """What the threads of teams call, seen from outside."""

    waits_at: int
    """the step after which the others are waited for"""
    met: list[int] = field(default_factory=list)
    """an element for each time that a thread came to a meeting"""
    asked: int = 0
    """how many times the time was asked for: before and after each meeting"""

    def seen(self) -> dict[str, int]:
        """As `launch.team_functions`."""
        barrier = launch._runtime().GOMP_barrier  # type: ignore[union-attr]

        def meet() -> None:
            self.met.append(0)
            barrier()

        def clock() -> float:
            self.asked += 1
            return 3600.0 if self.asked > 2 * self.waits_at + 1 else 0.0

        self.kept = ctypes.CFUNCTYPE(None)(meet), ctypes.CFUNCTYPE(ctypes.c_double)(clock)
        addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in self.kept]
        return {**_functions(), "barrier": addresses[0], "clock": addresses[1]}


SHAPES = {
    "forward": Shape(steps=30, batch=1, inputs=20, hidden=170, lengths=True, resets=True),
    "both directions": Shape(steps=12, batch=1, inputs=20, hidden=170, directions=2, resets=True),
    "few steps": Shape(steps=4, batch=2, inputs=160, hidden=200),
}
PLANS = (forward_plan.plan, layer_backward._plan, unpacked.plan)


@pytest.fixture
def new_plans() -> Iterator[None]:
    before = torch.get_num_threads()
    for plan in PLANS:
        plan.cache_clear()
    yield
    for plan in PLANS:
        plan.cache_clear()
    torch.set_num_threads(before)


def outputs(layer: Layer, few: bool) -> list[Tensor]:
    forward = backend.forward(layer, history=not few, gates=not few)
    return [*forward.states, *forward.finals, *forward.saved]


def gradients(layer: Layer, kept: Residuals) -> list[Tensor]:
    incoming = Gradients([None, None], [state + 1 for state in layer.states0], need_x=False, need_weights=False)
    return backend.backward(layer, kept, incoming).states0


@pytest.mark.skipif(launch.parallel() is None, reason="needs an OpenMP runtime")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("waits_at", [0, 2])
def test_a_team_that_waits_dissolves(
    cell: str, shape: str, waits_at: int, new_plans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = cast(random_layer(cell, SHAPES[shape]), torch.float32)
    few, threads = shape == "few steps", 2 * SHAPES[shape].directions
    meetings = SHAPES[shape].steps - few
    torch.set_num_threads(1)
    kept = backend.forward(layer, history=True, gates=True)
    calls: list[Callable[[], list[Tensor]]] = [lambda: outputs(layer, few)]
    if not few:
        calls.append(lambda: gradients(layer, Residuals(kept.states, kept.saved)))
    expected = [call() for call in calls]
    torch.set_num_threads(threads)
    monkeypatch.setattr(sharing, "is_welcome", lambda pace: True)
    for call, truth in zip(calls, expected, strict=True):
        team = Team(waits_at)
        with monkeypatch.context() as patch:
            patch.setattr(launch, "team_functions", team.seen)
            results = call()
        for result, same in zip(results, truth, strict=True):
            assert torch.equal(result, same)
        assert len(team.met) == threads * min(waits_at + 2, meetings), "it dissolves after one more step"
