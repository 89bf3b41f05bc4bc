"""Threads: the same results bit by bit with any number of them, from many callers at once, and after a fork."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", exc_type=ImportError)

from fastrnn.backends import numba as backend
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.backends.numba import launch, sharing
from fastrnn.backends.numba.split import Split, split, split_units
from tests.random_layers import Shape, cast, random_layer

LARGE = Shape(steps=40, batch=13, inputs=48, hidden=80, directions=2, lengths=True, resets=True)
"""Enough work for many threads."""
ONE_ROW = Shape(steps=150, batch=1, inputs=200, hidden=128, directions=2, resets=True)
"""Fewer rows than threads."""
TEAM = Shape(steps=30, batch=1, inputs=20, hidden=170, lengths=True, resets=True)
"""One row, of steps that are long enough for LSTM and GRU to be shared by threads."""
FEW_ROWS = Shape(steps=9, batch=3, inputs=20, hidden=370, lengths=True, resets=True)
"""Rows and weights of LSTM and GRU whose units threads share."""
DEADLINE = 60
"""Seconds that a child may take: far more than it needs."""


@pytest.fixture(autouse=True)
def _torchs_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def large_layer() -> Layer:
    return cast(random_layer("lstm", LARGE), torch.float32)


def everything(layer: Layer) -> list[Tensor]:
    """All that the kernels of a forward and a backward give, without torch's own products."""
    forward = backend.forward(layer, history=True, gates=True)
    incoming = Gradients([None, None], [state + 1 for state in layer.states0], need_x=False, need_weights=False)
    gradients = backend.backward(layer, Residuals(forward.states, forward.saved), incoming)
    return [*forward.states, *forward.finals, *forward.saved, *gradients.states0]


def assert_equal(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, truth in zip(results, expected, strict=True):
        assert torch.equal(result, truth)


@pytest.mark.parametrize("shape", [LARGE, ONE_ROW, TEAM, FEW_ROWS], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_any_number_of_threads_gives_the_same_bits(cell: str, shape: Shape) -> None:
    layer = cast(random_layer(cell, shape), torch.float32)
    torch.set_num_threads(1)
    expected = everything(layer)
    for threads in (2, 3, 5, 16):
        torch.set_num_threads(threads)
        assert_equal(everything(layer), expected)


@pytest.mark.parametrize("shape", [LARGE, TEAM, FEW_ROWS], ids=str)
def test_fewer_threads_than_planned_do_all_the_work(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = cast(random_layer("lstm", shape), torch.float32)
    torch.set_num_threads(4)
    expected = everything(layer)
    for shows_up in (1, 2, 7):
        share = launch._share
        monkeypatch.setattr(launch, "_share", lambda f, blocks, _: share(f, blocks, shows_up))  # noqa: B023
        monkeypatch.setattr(sharing, "is_welcome", lambda pace: True)
        assert_equal(everything(layer), expected)
        monkeypatch.undo()


def test_without_an_openmp_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = everything(large_layer_once())
    monkeypatch.setattr(launch, "runtime_address", lambda name: 0)
    assert launch.available_threads() == 1
    assert_equal(everything(large_layer_once()), expected)


def large_layer_once() -> Layer:
    torch.manual_seed(0)
    return large_layer()


def tasks(batch: int, units: int, threads: int, **options: int) -> Split:
    """How a GRU with so many units and rows is split, which is long enough for any number of threads."""
    products = 3 * units * units
    sizes = {"directions": 1, "steps": 1000, "products": products, "recurrent": products, "item": 4, "panels": 16}
    return split(batch=batch, available=threads, **(sizes | options))


def test_threads_share_units_where_weights_are_large_and_rows_few() -> None:
    assert tasks(batch=16, units=512, threads=2) == Split(slices=1, team=2, threads=2)
    assert tasks(batch=17, units=512, threads=2) == Split(slices=2, team=1, threads=2)
    assert tasks(batch=4, units=256, threads=2) == Split(slices=1, team=2, threads=2)
    assert tasks(batch=8, units=256, threads=2) == Split(slices=2, team=1, threads=2)
    assert tasks(batch=4, units=512, threads=2, directions=2) == Split(slices=1, team=1, threads=2)
    assert tasks(batch=4, units=512, threads=4, directions=2) == Split(slices=1, team=2, threads=4)


def test_a_team_is_formed_only_where_it_can_help() -> None:
    assert tasks(batch=1, units=256, threads=4, directions=2) == Split(slices=1, team=2, threads=4)
    assert tasks(batch=1, units=256, threads=8, panels=3) == Split(slices=1, team=3, threads=3)
    assert tasks(batch=5, units=64, threads=8).team == 1
    assert tasks(batch=1, units=64, threads=8) == Split(slices=1, team=1, threads=1)
    assert tasks(batch=1, units=256, threads=8, recurrent=0) == Split(slices=1, team=1, threads=1)


def test_small_work_stays_on_one_thread() -> None:
    assert tasks(batch=8, units=4, threads=8, steps=1) == Split(slices=1, team=1, threads=1)
    assert tasks(batch=8, units=128, threads=4, directions=2) == Split(slices=2, team=1, threads=4)


def test_threads_share_units_that_need_nothing_of_each_other() -> None:
    sizes = {"directions": 1, "steps": 1000, "products": 100_000, "panels": 4}
    assert split_units(batch=8, available=4, **sizes) == Split(slices=4, team=1, threads=4)
    assert split_units(batch=1, available=4, **sizes) == Split(slices=1, team=4, threads=4)
    assert split_units(batch=3, available=4, **sizes) == Split(slices=1, team=4, threads=4)
    assert split_units(batch=2, available=8, **sizes | {"directions": 2}) == Split(slices=2, team=2, threads=8)
    assert split_units(batch=1, available=2, **sizes | {"directions": 2}) == Split(slices=1, team=1, threads=2)
    assert split_units(batch=1, available=4, **sizes | {"steps": 1}) == Split(slices=1, team=1, threads=1)


def test_many_python_threads_at_once() -> None:
    layer = large_layer()
    torch.set_num_threads(2)
    expected = everything(layer)
    results: list[list[Tensor]] = [[] for _ in range(6)]

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = everything(layer)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(results))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        assert_equal(result, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_computes_alone() -> None:
    torch.set_num_threads(2)
    layer = large_layer()
    expected = everything(layer)
    child = os.fork()
    if child == 0:
        signal.alarm(DEADLINE)
        alone = launch.available_threads() == 1
        results = everything(layer)  # compared by NumPy: torch's own parallel loops hang in the child
        same = all(np.array_equal(result, truth) for result, truth in zip(results, expected, strict=True))
        os._exit(0 if alone and same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert launch.available_threads() == 2


def test_autograd_in_many_threads() -> None:
    """Backward runs on whichever thread calls it."""
    import fastrnn

    lstm, x = fastrnn.LSTM(32, 48), torch.randn(30, 8, 32)
    with fastrnn.use_backend("numba"):
        expected = torch.autograd.grad(lstm(x)[0].sum(), list(lstm.parameters()))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with fastrnn.use_backend("numba"):
                for _ in range(5):
                    got = torch.autograd.grad(lstm(x)[0].sum(), list(lstm.parameters()))
                    for d, truth in zip(got, expected, strict=True):
                        torch.testing.assert_close(d, truth)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
