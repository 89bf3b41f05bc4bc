"""What a process does once is done whole, whatever signals arrive and whoever forks meanwhile."""

from __future__ import annotations

import _thread
import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from fastrnn import first_use
from fastrnn.first_use import by_caller, undisturbed

DEADLINE = 60
"""Seconds that a process may take: far more than it needs."""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
may_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Interrupted(RuntimeError):
    """What the signal's handler raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """A signal raises in the main thread."""

    def interrupt(*_: object) -> NoReturn:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


in_main_thread_only = pytest.mark.skipif(
    not hasattr(signal, "setitimer") or not in_main_thread(), reason="signals are handled in the main thread"
)


@in_main_thread_only
def test_an_interrupt_arrives_and_the_work_goes_on(alarm: None) -> None:
    begun, may_end, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert may_end.wait(DEADLINE)
        done.set()

    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(Interrupted):
        undisturbed(work)
    assert begun.is_set()
    assert not done.is_set()
    may_end.set()
    assert undisturbed(done.is_set), "the next work did not wait for the first"


def test_results_errors_and_work_within_work() -> None:
    assert undisturbed(lambda: undisturbed(lambda: 3) + 1) == 4
    with pytest.raises(ZeroDivisionError):
        undisturbed(lambda: 1 // 0)


def test_one_thread_at_a_time() -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        inside.append(0)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()

    threads = [threading.Thread(target=undisturbed, args=(work,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    undisturbed(work)
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def test_without_another_thread_it_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert undisturbed(lambda: undisturbed(lambda: "done")) == "done"


@in_main_thread_only
def test_interrupts_at_any_time_lose_nothing(alarm: None) -> None:
    """A handler may raise an error of the kind that is raised where there are too many threads."""
    interrupted = 0
    for number in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.00002 + 0.000001 * number)
            assert undisturbed(lambda: time.sleep(0.0003)) is None
            while True:  # until it arrives
                time.sleep(0.001)
        except Interrupted:
            interrupted += 1
    assert interrupted == 300
    assert undisturbed(lambda: "the next") == "the next"


@in_main_thread_only
def test_what_is_printed_is_printed_by_the_thread_that_waits() -> None:
    """A window that shows it may belong to that thread."""
    threads: list[bool] = []

    def act() -> None:
        threads.append(in_main_thread())

    undisturbed(lambda: threads.append(in_main_thread()) or by_caller(act))  # type: ignore[func-returns-value]
    by_caller(act)
    assert threads == [False, True, True]


def test_within_an_import_no_thread_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for the import, if the work needs what is being imported."""
    (tmp_path / "imports_itself.py").write_text(
        "import importlib\nfrom fastrnn.first_use import undisturbed\n"
        "found = undisturbed(lambda: importlib.import_module('imports_itself'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("imports_itself").found.__name__ == "imports_itself"


def test_an_error_keeps_nothing_alive() -> None:
    class Large:
        pass

    def fail() -> None:
        large = undisturbed(Large)
        kept.append(weakref.ref(large))
        undisturbed(lambda: 1 // 0)

    kept: list[weakref.ref[Large]] = []
    gc.disable()
    try:
        with suppress(ZeroDivisionError):
            fail()
        assert kept[0]() is None
    finally:
        gc.enable()


def exit_status_of_child() -> int:
    """Of one that does such work itself; it is killed where that hangs."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(DEADLINE)
        status = undisturbed(lambda: 0)
        # By this thread, too: a new one may have the number of the one that held the parent's lock, which lets it in.
        os._exit(status if first_use._lock.acquire(timeout=1) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@needs_fork
@may_fork
def test_a_fork_waits() -> None:
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        time.sleep(0.2)
        done.set()

    other = threading.Thread(target=undisturbed, args=(work,))
    other.start()
    assert begun.wait(DEADLINE)
    status = exit_status_of_child()
    assert done.is_set(), "it forked in the middle of the work"
    other.join()
    assert status == 0
    assert undisturbed(lambda: 1) == 1


@contextmanager
def another_at_work() -> Iterator[None]:
    """Another thread does such work for as long as the block takes."""
    begun, may_end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert may_end.wait(DEADLINE)

    other = threading.Thread(target=undisturbed, args=(work,))
    other.start()
    assert begun.wait(DEADLINE)
    try:
        yield
    finally:
        may_end.set()
        other.join()


@needs_fork
@may_fork
def test_a_fork_that_has_waited_too_long_gets_a_lock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "LONGEST", 0.01)
    with another_at_work():
        assert exit_status_of_child() == 0
    assert undisturbed(lambda: 1) == 1


@needs_fork
@may_fork
@in_main_thread_only
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fork_whose_wait_is_interrupted_gets_a_lock_of_its_own(alarm: None) -> None:
    with another_at_work():
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert exit_status_of_child() == 0
    assert undisturbed(lambda: 1) == 1


@needs_fork
@may_fork
def test_work_may_fork() -> None:
    assert undisturbed(exit_status_of_child) == 0


FIRST_CALLS = """
import os, signal, threading, time, torch, fastrnn
torch.set_num_threads(1)
gru, x = fastrnn.GRU(2, 3, backend="numba"), torch.randn(4, 2, 2)

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    gru(x)
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("the first call took less than a tenth of a second")
signal.signal(signal.SIGALRM, signal.SIG_DFL)
thread = threading.Thread(target=lambda: gru(x)[0].sum().backward())
thread.start()
time.sleep(0.1)
child = os.fork()
if child == 0:
    signal.alarm({deadline})
    gru(x)[0].sum().backward()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
assert gru(x)[0].isfinite().all()
"""


@needs_fork
def test_the_first_call_may_be_interrupted_and_the_process_may_fork_meanwhile() -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    script = FIRST_CALLS.format(deadline=DEADLINE)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=2 * DEADLINE)


SUBINTERPRETER = """
import sys, _xxsubinterpreters as interpreters
try:
    interpreters.run_string(interpreters.create(), f"import sys; sys.path[:] = {sys.path}; import fastrnn")
except interpreters.RunFailedError as error:
    assert "fastrnn cannot be imported in a subinterpreter" in str(error), error
else:
    raise AssertionError("it was imported")
"""


def test_a_subinterpreter_is_refused() -> None:
    """In a process of its own: in one that has ever had a subinterpreter autograd refuses to work."""
    pytest.importorskip("_xxsubinterpreters")
    subprocess.run([sys.executable, "-c", SUBINTERPRETER], check=True, timeout=DEADLINE)
