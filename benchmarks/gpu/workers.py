"""Starts jobs, takes down what they report as it comes, and ends those that hang, with every process they started."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.checkout import ROOT, variables_of_children
from benchmarks.gpu.work import MARK, STUCK

KEPT_LINES = 30
"""Of a process' other output: what tells why it died."""
POLL_SECONDS = 0.2
RESTARTS = 4
"""Of a job that dies or hangs in a case; a new process runs the cases after that one."""
DONE, DIED, HUNG, OUT_OF_TIME = "done", "its process died", "it did not end and was ended", "the stage's time was over"

Take = Callable[[dict[str, Any]], None]
"""What is done with a record; called from several threads."""


@dataclass(frozen=True)
class Job:
    """A process and the cases that it runs; see `work`."""

    name: str
    module: str
    """by its full name"""
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    silence: float = 40.0
    """seconds after which a case hangs; the start of the process with its imports counts as one"""


@dataclass
class Ended:
    """How a process ended."""

    how: str
    status: int | None
    during: str | None
    """the case that had begun and was not reported"""
    last: str | None
    """the case that was reported last"""
    log: list[str]


def run_together(jobs: Sequence[Job], deadline: float, take: Take) -> None:
    """Runs jobs side by side."""
    threads = [threading.Thread(target=run, args=(job, deadline, take)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run(job: Job, deadline: float, take: Take) -> None:
    """Runs all cases of a job, but for what the clock (`time.monotonic`) does not reach before `deadline`.

    A case in which the process dies or hangs becomes a record that says so, and a new process runs those after it.
    """
    after: str | None = None
    for _ in range(RESTARTS + 1):
        ended = run_process(job, after, deadline, take)
        if ended.how == DONE:
            return
        if ended.status == STUCK and ended.during is None:
            after = ended.last  # whose failure is told
            continue
        where = ended.during or "between cases"
        take({"case": where, "failed": f"{ended.how} ({ended.status})", "log": ended.log, "job": job.name})
        if ended.how == OUT_OF_TIME or ended.during is None:
            return
        after = ended.during


def run_process(job: Job, after: str | None, deadline: float, take: Take) -> Ended:
    """One process of a job, from the case after `after` on."""
    command = [sys.executable, "-m", "benchmarks.gpu.work", job.module, json.dumps(job.options)]
    process = subprocess.Popen(
        [*command, *([] if after is None else [after])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        env=variables_of_children() | {"PYTHONUNBUFFERED": "1"} | job.environment,
        start_new_session=True,  # so that it and what it starts can be ended together
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    ended = Ended(DONE, None, None, None, [])
    log: deque[str] = deque(maxlen=KEPT_LINES)
    heard = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if process.poll() is not None:
                break  # what it started and left may hold its output open
            now = time.monotonic()
            if now >= deadline or now - heard >= job.silence:
                ended.how = OUT_OF_TIME if now >= deadline else HUNG
                break
            continue
        message = message_in(line)
        if message is None:
            log.append(line.rstrip("\n")[:500])
            continue
        heard = time.monotonic()
        if "begin" in message:
            ended.during = message["begin"]
        else:
            ended.last, ended.during = message["record"]["case"], None
            take({**message["record"], "job": job.name})
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    ended.status = process.wait()
    reader.join(POLL_SECONDS)  # not longer: a process that left the group may hold the output open
    ended.log = list(log)
    if ended.how == DONE and ended.status != 0:
        ended.how = DIED
    return ended


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)


def message_in(line: str) -> dict[str, Any] | None:
    """What a line of `work.send` says; None for any other line."""
    start = line.find(MARK)  # a library may have begun the line
    if start < 0:
        return None
    try:
        message = json.loads(line[start + len(MARK) :])
    except ValueError:
        return None
    told = message.get("record") if isinstance(message, dict) else None
    is_one = isinstance(message, dict) and (isinstance(message.get("begin"), str) or isinstance(told, dict))
    return message if is_one else None
