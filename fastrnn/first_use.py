"""What a process does once, when it is first needed: imports, and kernels compiled or loaded.

Such work is easily broken for good: a signal handler that raises in the middle of an import leaves half a package
behind, and a child that was forked in the middle of a compilation waits for ever for locks whose owner it lacks. So
signals do not reach it, and a fork waits until it is done.

There is no handshake between threads here that a handler could interrupt half way: a queue's get and a lock's acquire
are single calls that have either happened or not.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")

LONGEST = 300.0
"""Seconds that a fork waits. No kernel takes a tenth of it to compile; what takes longer waits for the thread that
forks, and the child then has to do without it."""

_lock = threading.RLock()


class _Worker(threading.local):
    caller: SimpleQueue[Any] | None = None
    """of the thread that waits for this one's work"""


_worker = _Worker()


def undisturbed(work: Callable[[], Result]) -> Result:
    """What `work` returns, or raises; one thread at a time does such work.

    Python runs signal handlers in the main thread, so that a call from there is done by another thread. If a handler
    raises, that arrives at once (on Windows after the work), and the other thread does the work to its end. While a
    module is imported, whose lock the work might need, it is done where it is asked for.
    """
    if threading.get_ident() != threading.main_thread().ident or _is_owned() or sys.is_finalizing() or _is_importing():
        with _lock:
            return work()
    caller: SimpleQueue[Any] = SimpleQueue()

    def do() -> None:
        _worker.caller = caller
        try:
            with _lock:
                outcome: tuple[Any, BaseException | None] = work(), None
        except BaseException as error:
            outcome = None, error
        _worker.caller = None
        caller.put(outcome)
        del outcome  # this frame is held by an error, which it must not hold

    try:
        _thread.start_new_thread(copy_context().run, (do,))
        is_started = True
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise  # what a handler raised
        is_started = False  # there are too many
    if not is_started:
        do()
    while callable(message := caller.get()):
        message()
    result, failure = message
    if failure is not None:
        try:
            raise failure
        finally:
            del failure, message
    return result  # type: ignore[no-any-return]


def by_caller(act: Callable[[], None]) -> None:
    """Has the thread act that waits for the work which this one does, if one waits: it may own what is acted on, as a
    user interface that shows what is printed."""
    act() if _worker.caller is None else _worker.caller.put(act)


def _is_owned() -> bool:
    return _lock._is_owned()  # type: ignore[attr-defined, no-any-return]


def _is_importing() -> bool:
    modules = [module for module in list(sys.modules.values()) if isinstance(module, type(sys))]
    # Not by attribute, which would load modules that are to be loaded by their first attribute.
    specs = (object.__getattribute__(module, "__dict__").get("__spec__") for module in modules)
    return any(getattr(spec, "_initializing", False) for spec in specs)


def _wait() -> None:
    _lock.acquire(timeout=LONGEST)


def _go_on() -> None:
    if _is_owned():  # else it was waited for too long, or a handler raised
        _lock.release()


def _go_on_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that holds the old one is not there to release it


def _finish() -> None:
    with _lock:  # no thread is cut off by the end of the interpreter
        pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_go_on_in_child)
atexit.register(_finish)
