"""What a process does once, when it is first needed: imports, and kernels compiled or loaded.

Such work is easily broken for good: a signal handler that raises in the middle of an import leaves half a package
behind, and a child that was forked in the middle of a compilation waits for ever for locks whose owner it lacks. So
signals do not reach it, and a fork waits until it is done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

Result = TypeVar("Result")

LONGEST = 300.0
"""Seconds that a fork waits. No kernel takes a tenth of it to compile; what takes longer waits for the thread that
forks, and the child then has to do without it."""

_lock = threading.RLock()
_waited = threading.local()


def undisturbed(work: Callable[[], Result]) -> Result:
    """What `work` returns, or raises; one thread at a time does such work.

    Python runs signal handlers in the main thread, so that a call from there is done by another thread. If a handler
    raises, that arrives at once, and the other thread does the work to its end.
    """
    if threading.current_thread() is not threading.main_thread() or _lock._is_owned():  # type: ignore[attr-defined]
        with _lock:
            return work()
    future: Future[Result] = Future()

    def do() -> None:
        try:
            with _lock:
                future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=copy_context().run, args=(do,), name="fastrnn's first use").start()
    except RuntimeError:  # no further thread: too many, or the interpreter is about to end
        do()
    return future.result()


def _wait() -> None:
    _waited.lock = _lock if _lock.acquire(timeout=LONGEST) else None


def _go_on() -> None:
    if _waited.lock is not None:
        _waited.lock.release()


def _go_on_in_child() -> None:
    global _lock
    if _waited.lock is None:
        _lock = threading.RLock()  # the thread that holds the old one is not there to release it
    _go_on()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_go_on_in_child)
