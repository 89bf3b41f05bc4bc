"""What the way from Python to a kernel leaves behind: after threads, failures, forks and many calls."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import sys
import threading
import tracemalloc
import weakref
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from fastrnn import extension
from fastrnn.streaming import door, plain_door
from fastrnn.streaming.plain_door import BUSY, RELEASED
from tests.streaming.doors import BATCH, I, O, expected, make, usual


@pytest.mark.parametrize("work", [1, RELEASED])
def test_another_thread_is_refused(base: Any, kind: str, work: int) -> None:
    stream = make(base, work=work)
    inside, leave = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        assert leave.wait(60)

    stream.kernel.during = wait
    x, results = usual(), []
    thread = threading.Thread(target=lambda: results.append(stream(x)))
    thread.start()
    try:
        assert inside.wait(60)
        assert stream.block[BUSY] == 1
        with pytest.raises(RuntimeError, match="Stream: another thread is using this stream"):
            stream(x)
        with pytest.raises(RuntimeError, match="Stream: another thread is using this stream"):
            stream._enter()
    finally:
        leave.set()
        thread.join()
    assert len(results) == len(stream.kernel.calls) == 1
    assert stream.block[BUSY] == 0
    stream(x)


def test_what_the_kernel_refuses_goes_to_python(base: Any) -> None:
    stream = make(base)
    stream.kernel.status = 3
    with pytest.raises(ValueError, match="status 3"):
        stream(usual())
    assert len(stream.slow) == 1
    assert stream.block[BUSY] == 0
    stream.kernel.status = 0
    np.testing.assert_array_equal(stream(usual()), expected(usual()))


@pytest.mark.parametrize(
    ("view", "error"),
    [
        (lambda *_: 1 / 0, ZeroDivisionError),
        (lambda *_: None, TypeError),
        (lambda *_: (torch.zeros(1), "address"), TypeError),
        (lambda *_: (torch.zeros(1), 0), ValueError),
        (lambda *_: (torch.zeros(1), 1 << 80), OverflowError),
    ],
    ids=["raises", "nothing", "no number", "nowhere", "too far"],
)
def test_a_view_that_fails_leaves_nothing_taken(
    base: Any, monkeypatch: pytest.MonkeyPatch, view: Callable[..., Any], error: type[Exception]
) -> None:
    stream = make(base)
    stream.refused = error()
    monkeypatch.setattr(type(stream), "_view", view)
    with pytest.raises(error):
        stream(usual())
    assert stream.block[BUSY] == 0
    assert not stream.kernel.calls
    monkeypatch.undo()
    stream.refused = None
    np.testing.assert_array_equal(stream(usual()), expected(usual()))


def test_a_kernel_that_raises_leaves_nothing_taken(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, raised = make(base), []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: raised.append(told.exc_type))
    stream.kernel.during = lambda: 1 / 0
    stream(usual())
    assert raised == [ZeroDivisionError]
    assert stream.block[BUSY] == 0
    stream.kernel.during = lambda: None
    np.testing.assert_array_equal(stream(usual()), expected(usual()))


def test_a_door_that_is_shut_sends_calls_to_python(base: Any) -> None:
    stream = make(base)
    told = weakref.ref(stream(usual()))
    stream._enter()
    stream._shut()
    stream._leave()
    assert told() is None
    stream.slow.clear()
    stream.refused = RuntimeError("closed")
    with pytest.raises(RuntimeError, match="closed"):
        stream(usual())
    assert len(stream.slow) == 1


def test_a_long_call_releases_the_interpreter(base: Any) -> None:
    """The kernel's status is whether its thread may use Python."""
    numba = pytest.importorskip("numba")
    if sys.platform == "win32":
        pytest.skip("the interpreter is no library that ctypes finds by no name")
    may = ctypes.CDLL(None).PyGILState_Check
    may.argtypes, may.restype = [], ctypes.c_int

    @numba.cfunc("void(CPointer(int64))")
    def kernel(block: Any) -> None:
        block[5] = may()

    block = (ctypes.c_int64 * (BUSY + 1))()
    sizes = {"features": I, "outputs": O, "steps": 4, "batch": 5, "batch_first": False, "slots": 0}
    stream = base(kernel=kernel.address, block=ctypes.addressof(block), work=RELEASED // 4, **sizes)
    for steps, rows, released in ((4, 1, False), (1, 4, False), (4, 2, True), (2, 4, True)):
        stream._enter()
        assert stream._start(8, 16, steps, rows, 24) == (not released)
        stream._leave()
        assert list(block) == [8, 16, steps, rows, 24, not released, 0]


def test_both_release_it_alike() -> None:
    if (reason := extension.why_no_door()) is not None:
        pytest.skip(reason)
    from fastrnn import _stream

    assert RELEASED == _stream.RELEASED
    assert door.Door is _stream.Door


def test_nothing_is_kept(base: Any) -> None:
    stream, slotted = make(base), make(base, slots=9)
    x, result, slots, x_numpy = usual(), torch.zeros(BATCH, O), torch.arange(BATCH), np.zeros((BATCH, I), np.float32)
    memory = torch.zeros(BATCH * I)
    one, overlapping = memory.view(BATCH, I), memory[: BATCH * O].view(BATCH, O)
    refusing = make(base)
    refusing.kernel.status = 3
    for each in (stream, slotted, refusing):
        each.kernel.calls = each.slow = Forgetful()
    held = [stream, slotted, stream(x), x, one, overlapping, result, slots, x_numpy, None, False, type(stream)]

    def run(times: int) -> None:
        for _ in range(times):
            stream(x)
            stream(x, out=result)
            stream(x_numpy)
            stream(x.view(1, BATCH, I))
            stream(one.zero_(), out=overlapping)
            type(stream)()
            with suppress(ValueError):
                refusing(x, out=result)
            slotted(x, slots=slots, out=result)
            with suppress(TypeError):
                stream(x, wrong=x)

    def changes() -> tuple[int, list[int]]:
        """What 200 rounds of calls add to the memory in use and to the references of each."""
        gc.collect()
        before, counts = tracemalloc.get_traced_memory()[0], [sys.getrefcount(each) for each in held]
        run(200)
        gc.collect()
        after = [sys.getrefcount(each) for each in held]
        return tracemalloc.get_traced_memory()[0] - before, [b - a for a, b in zip(counts, after, strict=True)]

    run(10)
    tracemalloc.start()
    try:
        memory_grown, references = zip(*(changes() for _ in range(3)), strict=True)
    finally:
        tracemalloc.stop()
    # The least of three: what other tests left, whose references to None end some time, is no fault of these calls.
    assert min(memory_grown) < 50_000
    for each, grown in zip(held, zip(*references, strict=True), strict=True):
        assert min(map(abs, grown)) < 50, (type(each), grown)


class Forgetful(list[Any]):
    """Keeps nothing that is appended."""

    def append(self, _: Any) -> None:
        pass


def test_a_buffer_is_given_back(base: Any) -> None:
    stream, slotted = make(base), make(base, slots=9)
    for features in (I, I + 1):  # as usual and not
        stream.refused = ValueError()
        x = memoryview(bytearray(4 * BATCH * features)).cast("B").cast("f", (BATCH, features))
        with suppress(ValueError):
            stream(x)
        stream.refused = None  # it knows what it was raised for
        x.release()  # raises where somebody has it
    slots = array("q", range(BATCH))
    slotted(usual(), slots=slots)
    slots.append(0)  # so does this


def test_a_derived_object_is_collected(base: Any) -> None:
    stream = make(base)
    stream(usual())
    stream.itself = stream
    told = weakref.ref(stream), weakref.ref(stream.kernel)
    del stream
    gc.collect()
    assert [each() for each in told] == [None, None]


def test_a_cycle_through_the_output_is_collected(base: Any) -> None:
    stream = make(base)
    result = stream(usual())
    result.owner = stream
    told = weakref.ref(stream)
    del stream, result
    gc.collect()
    assert told() is None


def test_without_its_init_nothing_is_called(base: Any) -> None:
    class Careless(base):
        def __init__(self) -> None:
            pass

        def _slowly(self, x: Any, out: Any, slots: Any) -> str:
            return "slowly"

    careless = Careless()
    assert careless(usual()) == "slowly"
    with pytest.raises((RuntimeError, AttributeError)):
        careless._enter()
    with pytest.raises((RuntimeError, AttributeError)):
        careless._start(8, 8, 1, 1, 0)


@pytest.mark.parametrize("make_another", [copy.copy, copy.deepcopy, pickle.dumps])
def test_there_are_no_copies(base: Any, make_another: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="cannot pickle 'Derived' object"):
        make_another(make(base))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on(base: Any) -> None:
    stream = make(base)
    stream(usual())
    child = os.fork()
    if child == 0:
        try:
            same = np.array_equal(stream(usual()), expected(usual())) and len(stream.kernel.calls) == 2
        except BaseException:
            same = False
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_derivative_classes_of_both_answer_alike() -> None:
    """Every method and constructor argument of the one in Python is in C too."""
    if (reason := extension.why_no_door()) is not None:
        pytest.skip(reason)
    ours = {name for name in vars(plain_door.Door) if not name.startswith("__")} - {"_slowly", "_view"}
    assert ours <= set(dir(door.Door))
