"""A peer's process, seen from the one that measures: asked one thing at a time, and stopped in between."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from benchmarks.checkout import variables_of_children
from benchmarks.peers.task import FAILED

TIMEOUT_SECONDS = 60.0
"""For one answer. Beyond any compilation of a model and any turn."""
GRACE_SECONDS = 1.0
"""Beyond that: whoever asks may have been stopped, or the whole machine, and find the time-out over at once."""
CLOSE_SECONDS = 5.0
"""For a process that was told to end, or killed."""


class PeerFailed(Exception):
    """A peer raised, died or gave no answer; the message names it and says which."""


class PeerProcess:
    """Starts when it is first asked, and anew after it died or was ended because it hung."""

    def __init__(
        self, name: str, engine: str, timeout: float = TIMEOUT_SECONDS, worker: str = "benchmarks.peers.worker"
    ) -> None:
        self.name = name
        self.engine = engine
        """MODULE:CLASS, imported over there."""
        self.worker = worker
        """The module that runs there."""
        self.timeout = timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None
        self.log: IO[bytes] | None = None

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the worker's method returns. Raises PeerFailed. The process only runs until it has answered."""
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.connection is not None
        try:
            self.process.send_signal(signal.SIGCONT)
            self.connection.send((method, arguments))
        except OSError:
            raise PeerFailed(self._died(method)) from None
        return self._answer(method)

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait(CLOSE_SECONDS)
        if self.log is not None:
            self.log.close()
        self.process = self.connection = self.log = None

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        descriptor = theirs.fileno()
        command = [sys.executable, "-m", self.worker, self.engine, str(descriptor)]
        self.process = subprocess.Popen(
            command,
            pass_fds=(descriptor,),
            env=variables_of_children(),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        theirs.close()
        try:
            self._answer("start")
        except PeerFailed:
            self.close()
            raise

    def _answer(self, method: str) -> Any:
        assert self.process is not None
        assert self.connection is not None
        try:
            if not (self.connection.poll(self.timeout) or self.connection.poll(GRACE_SECONDS)):
                self.close()
                raise PeerFailed(
                    f"{self.name}: no answer to {method!r} within {self.timeout:g} s; its process was ended"
                )
            status, value = self.connection.recv()
        except (EOFError, OSError):
            raise PeerFailed(self._died(method)) from None
        self.process.send_signal(signal.SIGSTOP)
        if status == FAILED:
            raise PeerFailed(f"{self.name}: {method}: {value}")
        return value

    def _died(self, method: str) -> str:
        """How the process ended, after cleaning up."""
        assert self.process is not None
        assert self.log is not None
        try:
            code = self.process.wait(CLOSE_SECONDS)
            how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            how = "hung up without ending"
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        self.close()
        return f"{self.name}: its process {how} at {method!r}{f': {lines[-1]}' if lines else ''}"
