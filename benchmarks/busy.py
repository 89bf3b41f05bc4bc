"""Processes that keep processors busy while another one measures: see `benchmarks.competitor`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.checkout import variables_of_children

BUSY = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that measures, which then ends this one
from benchmarks.peers.worker import end_with_parent
end_with_parent()
print(flush=True)
while True:
    pass
"""


class CompetitorEnded(Exception):
    """One of the processes that keep the cores busy is gone."""

    def __str__(self) -> str:
        return "a competitor ended by itself"


class Competitors:
    """Processes that compute without end while `busy` says so; else they are stopped. They end with the block."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Competitors:
        with ExitStack() as cleanup:
            cleanup.callback(self.end)
            for _ in range(self.count):
                self.processes.append(start())
            for process in self.processes:
                wait_until_ready(process)
            self.pause()
            cleanup.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """They compute until the end of the block."""
        try:
            for process in self.processes:
                process.send_signal(signal.SIGCONT)
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Returns once all have stopped."""
        for process in self.processes:
            process.send_signal(signal.SIGSTOP)
        for process in self.processes:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                raise CompetitorEnded

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()


def start() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, env=variables_of_children())


def wait_until_ready(process: subprocess.Popen[bytes]) -> None:
    """Returns once it computes. Raises CompetitorEnded."""
    assert process.stdout is not None
    if not process.stdout.readline():
        raise CompetitorEnded
