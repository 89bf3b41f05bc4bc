"""A peer's process: `python -m benchmarks.peers.worker MODULE:CLASS DESCRIPTOR`, started by `process`.

It answers requests, the name of a method of `Worker` or of who takes its place, with its arguments, that come through
the connection at DESCRIPTOR, until that is closed: by ("done", what the method returned), or ("failed", the error's
type and message). A first answer, unasked, says whether the engine could be imported. torch is not imported here: its
threads would be one more pool.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.peers.buffers import Engine, Runs, Session
from benchmarks.peers.task import DONE, FAILED, Array
from benchmarks.timing import wall_burst

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


class Worker:
    """One engine, and the task that it was given last."""

    def __init__(self, path: str) -> None:
        module, name = path.split(":")
        self.engine: Callable[[Any], Engine | Runs] = getattr(importlib.import_module(module), name)
        self.session: Runs | None = None

    def build(self, task: Any) -> None:
        self.session = None  # frees the former task's memory first
        gc.collect()
        engine = self.engine(task)
        self.session = engine if isinstance(engine, Runs) else Session(engine, task)

    def run(self) -> list[Array]:
        """The results of one run, into memory that held NaN: a call that writes nothing is noticed."""
        session = self.built()
        session.poison()
        session.run()
        return session.results()

    def turn(self, untimed: int, timed: int) -> tuple[float, float]:
        """The seconds that so many runs took, one kind after the other."""
        session = self.built()
        return wall_burst(session.run, untimed), wall_burst(session.run, timed)

    def built(self) -> Runs:
        if self.session is None:
            raise RuntimeError("nothing was built")
        return self.session


def main(path: str, descriptor: str, kind: Callable[[str], object] = Worker) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that measures, which then ends this one
    end_with_parent()
    gc.disable()
    connection = Connection(int(descriptor))
    try:
        worker = kind(path)
    except Exception as error:
        connection.send((FAILED, text_of(error)))
        return
    connection.send((DONE, None))
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = DONE, getattr(worker, method)(*arguments)
        except Exception as error:
            answer = FAILED, text_of(error)
        connection.send(answer)


def end_with_parent() -> None:
    """Ends this process with the thread that started it, however that ends: a stopped process reads no end of file.

    Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def text_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(*sys.argv[1:])
