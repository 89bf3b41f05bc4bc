"""Threads share a launch only while that pays, and part where one of them is waited for too long."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", exc_type=ImportError)

from fastrnn.backends import numba as backend
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.backends.numba import forward_schedule, launch, layer_backward, sharing, unpacked
from fastrnn.backends.numba.sharing import LONGEST, REST, SECOND_CHANCE, TRIALS, Pace
from tests.random_layers import Shape, cast, random_layer


class Machine:
    """Launches by a clock of their own: what they take shared and alone, and how they were made."""

    def __init__(self, shared: float, alone: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = {True: shared, False: alone}
        self.now = 100.0
        sharing._times.cache_clear()
        self.pace = self.new(alone)
        monkeypatch.setattr(sharing, "perf_counter", lambda: self.now)
        monkeypatch.setattr(sharing, "_process", sharing._Process())

    def new(self, likely: float, meets: bool = False, steps: int = 1) -> Pace:
        return Pace(likely, steps, likely, threads=2, meets=meets)

    def launch(self, pace: Pace | None = None) -> bool:
        """Whether it was shared."""
        pace = pace or self.pace
        welcome = sharing.is_welcome(pace)
        self.now += self.seconds[welcome]
        (sharing.shared if welcome else sharing.alone)(pace, self.seconds[welcome])
        return welcome

    def launches(self, count: int) -> list[bool]:
        return [self.launch() for _ in range(count)]


def test_a_new_kind_is_tried_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    assert machine.launches(TRIALS + 6) == [True, False, True, False] + [True] * 6


def test_what_is_faster_alone_stays_alone_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=60e-6, alone=50e-6, monkeypatch=monkeypatch)
    assert machine.launches(256)[TRIALS:].count(True) == 2 * 3
    machine.seconds[True] = 30e-6
    machine.launches(2 * SECOND_CHANCE)
    assert all(machine.launches(10))


def test_threads_that_sleep_are_woken_only_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    machine.launches(10)
    woken = 0
    for _ in range(2 * SECOND_CHANCE):
        machine.now += 0.01
        machine.seconds[True] = 150e-6
        woken += machine.launch()
        machine.seconds[True] = 40e-6
        machine.launch()
    assert woken < 20
    machine.launches(2 * SECOND_CHANCE)
    assert all(machine.launches(10)), "they are awake"


def test_other_numbers_of_steps_are_not_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)

    def alone(steps: Iterable[int]) -> int:
        paces = [Pace("one kind", number, number * 60e-6, threads=2) for number in steps]
        return [machine.launch(pace) for pace in paces].count(False)

    assert alone(range(8, 16)) == 2
    assert alone(range(8, 16)) == 0


@pytest.mark.parametrize(("alone", "meets"), [(3e-3, False), (15e-3, True)])
def test_a_long_launch_is_not_tried_alone(alone: float, meets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=alone / 2, alone=alone, monkeypatch=monkeypatch)
    machine.pace = machine.new(alone, meets)
    assert all(machine.launches(10))
    machine.seconds[True] = 8 * alone
    machine.launch()
    assert not machine.launch(), "but stays alone after a loss, as others"


def test_neighbours_cost_a_fortieth(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    machine.launches(1000)
    machine.seconds = {True: 8e-3, False: 120e-6}
    began, waits = machine.now, 0
    while machine.now < began + 10:
        waits += machine.launch()
    assert 5 < waits < 10 / 8e-3 / REST + 3
    machine.seconds = {True: 40e-6, False: 60e-6}
    machine.now += LONGEST
    machine.launches(SECOND_CHANCE)
    assert all(machine.launches(10)), "the neighbours have gone"


def test_a_wait_that_sharing_has_paid_for_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    for _ in range(5):
        machine.launches(500)
        machine.seconds[True] = 8e-3
        assert machine.launch()
        machine.seconds[True] = 40e-6
        assert all(machine.launches(10))


def test_a_machine_that_has_become_slower_has_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    machine.launches(10)
    machine.seconds = {True: 100e-6, False: 150e-6}
    machine.launches(2 * SECOND_CHANCE)
    assert all(machine.launches(100))


def test_one_wait_of_several_callers_is_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=5e-3, alone=9e-3, monkeypatch=monkeypatch)
    machine.pace = machine.new(9e-3)
    machine.launches(2)
    machine.now += 0.1
    for _ in range(8):
        sharing.shared(machine.pace, 0.02)
    assert sharing._process.end == pytest.approx(machine.now + REST * 0.005, rel=1e-3)


def test_neighbours_of_one_kind_are_those_of_other_short_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    machine.launches(10)
    machine.seconds[True] = 8e-3
    assert machine.launch()
    assert not machine.launch()
    assert not machine.launch(machine.new(70e-6))
    assert not machine.launch(machine.new(sharing.LONG, meets=True))
    assert machine.launch(machine.new(1.1 * sharing.LONG)), "a thread with half a processor is worth waiting for once"


def test_a_kind_first_seen_in_a_pause_is_shared_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(shared=40e-6, alone=60e-6, monkeypatch=monkeypatch)
    sharing._process.end = machine.now + 0.1
    while not machine.launch():
        pass
    assert machine.now == pytest.approx(100.1, rel=1e-5)
    assert all(machine.launches(10))


_functions = launch.team_functions


@dataclass
class Team:
    """What the threads of teams call, seen from outside."""

    waits_at: int
    """the step after which the others are waited for"""
    again: bool
    """whether they are after every later one, too"""
    met: list[int] = field(default_factory=list)
    """an element for each time that a thread came to a meeting"""
    asked: int = 0
    """how many times the time was asked for: before and after each meeting"""

    kept: list[object] = field(default_factory=list)

    def seen(self) -> dict[str, int]:
        """As `launch.team_functions`."""
        barrier = launch._runtime().GOMP_barrier  # type: ignore[union-attr]

        def meet() -> None:
            self.met.append(0)
            barrier()

        def clock() -> float:
            self.asked += 1
            late = self.asked - 2 * self.waits_at - 2  # the first time is that of the beginning
            return 3600.0 * (max(late, 0) if self.again else late > 0)

        functions = ctypes.CFUNCTYPE(None)(meet), ctypes.CFUNCTYPE(ctypes.c_double)(clock)
        self.kept.append(functions)  # for as long as anything may call them
        addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
        return {**_functions(), "barrier": addresses[0], "clock": addresses[1]}


SHAPES = {
    "forward": Shape(steps=30, batch=1, inputs=20, hidden=170, lengths=True, resets=True),
    "both directions": Shape(steps=12, batch=1, inputs=20, hidden=170, directions=2, resets=True),
    "few steps": Shape(steps=4, batch=2, inputs=160, hidden=200),
}
SCHEDULES = (forward_schedule.schedule, layer_backward._schedule, unpacked.schedule)


@pytest.fixture
def new_schedules() -> Iterator[None]:
    before = torch.get_num_threads()
    for schedule in SCHEDULES:
        schedule.cache_clear()
    yield
    for schedule in SCHEDULES:
        schedule.cache_clear()
    torch.set_num_threads(before)


def outputs(layer: Layer, few: bool) -> list[Tensor]:
    forward = backend.forward(layer, history=not few, gates=not few)
    return [*forward.states, *forward.finals, *forward.saved]


def gradients(layer: Layer, kept: Residuals) -> list[Tensor]:
    incoming = Gradients([None, None], [state + 1 for state in layer.states0], need_x=False, need_weights=False)
    return backend.backward(layer, kept, incoming).states0


@pytest.mark.skipif(not launch.can_share(), reason="needs an OpenMP runtime")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(("waits_at", "again"), [(0, True), (2, True), (2, False)])
def test_a_team_that_waits_dissolves(
    cell: str, shape: str, waits_at: int, again: bool, new_schedules: None, monkeypatch: pytest.MonkeyPatch
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
        team = Team(waits_at, again)
        with monkeypatch.context() as patch:
            patch.setattr(launch, "team_functions", team.seen)
            results = call()
        for result, same in zip(results, truth, strict=True):
            assert torch.equal(result, same)
        assert len(team.met) == threads * min(waits_at + 2, meetings), "it dissolves after one more step"
