"""Whether this process has come to rest: a pool's threads spin on for a while after their work is done."""

from __future__ import annotations

import threading
import time
from pathlib import Path

LOOK_SECONDS = 0.001
"""Between two looks at the threads."""
BUSY_SHARE = 0.25
"""Of the time between two looks, where only the process's time is known: a thread that spins uses all of it, looking
some hundredths."""
LIMIT_SECONDS = 2.0
"""OpenMP's threads spin for 9 ms here; on a machine that is busy with other programs it takes them longer."""
THREADS = Path("/proc/self/task")
RUNNING = "R"
"""On a processor or waiting for one, see proc(5)."""


class NotAtRest(Exception):
    """Threads of this process keep the processor busy."""


def rest() -> None:
    """Returns once no thread of this process but the caller wants to run. Raises NotAtRest."""
    is_at_rest = others_sleep if THREADS.is_dir() else little_time_is_used
    deadline = time.perf_counter() + LIMIT_SECONDS
    while not is_at_rest():
        if time.perf_counter() > deadline:
            raise NotAtRest(f"threads of this process were still busy after {LIMIT_SECONDS:g} s (OMP_WAIT_POLICY?)")
        time.sleep(LOOK_SECONDS)


def others_sleep() -> bool:
    """Whether all other threads of this process sleep; Linux only."""
    caller = str(threading.get_native_id())
    return not any(state_of(thread) == RUNNING for thread in THREADS.iterdir() if thread.name != caller)


def state_of(thread: Path) -> str | None:
    """The letter for what a thread or process does, from its directory in /proc; None if it has ended."""
    try:
        return (thread / "stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def little_time_is_used() -> bool:
    """Whether this process uses next to no processor time for a while."""
    began, used = time.perf_counter(), time.process_time()
    time.sleep(LOOK_SECONDS)
    return time.process_time() - used < BUSY_SHARE * (time.perf_counter() - began)
