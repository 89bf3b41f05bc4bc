"""Peak memory of one call, by contender, each in a process of its own.

What is measured: by how much the process's resident memory rises, at its highest, above where it stood before the
call. It counts everything the call allocates at once, whoever allocates it (torch, Numba, oneDNN): temporaries, what
is saved for backward, gradients and the outputs themselves, which are kept until the call ends. It does not count
weights, inputs or compiled code: they are there before, since the contender was warmed up. Memory that the warm-up
left in the allocator's hands is returned to the system first. Pages of 4 KiB are counted, in batches for each thread:
below about 0.1 MB the figure is noise.

On Linux the peak is the kernel's high-water mark, reset before the call (`/proc/self/clear_refs`, VmHWM). Elsewhere it
is the growth of `ru_maxrss`, which cannot be reset: the warm-up then runs a single step, and the figure is a lower
bound, since the mark may have stood above the resident memory already.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch

from benchmarks.cases import Case, make_problem
from benchmarks.contenders import Contender

WARM_UP_CALLS = 2
"""The first compiles and loads, the second finds what only repeats itself."""
MEASURED_CALLS = 3
TIMEOUT_SECONDS = 600.0
"""Beyond any compilation."""
PRELOAD = ["torch", "numba"]
"""Imported once by the process that the others are forked from; nothing runs there, so no thread pool is forked."""

CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_HIGH_WATER_MARK = "5"
"""What clear_refs takes for it, see proc(5)."""


class MemoryNotMeasured(Exception):
    """The process that was to measure failed, and why."""


def peak_bytes(contender: Contender, case: Case, threads: int) -> int:
    """The peak memory of one call in bytes, by a fresh process with `threads` threads. Raises MemoryNotMeasured."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, contender, case, threads), daemon=True)  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        if not receiver.poll(TIMEOUT_SECONDS):
            raise MemoryNotMeasured(f"no answer within {TIMEOUT_SECONDS:.0f} s")
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise MemoryNotMeasured(f"the measuring process ended with exit code {process.exitcode}") from None
    finally:
        receiver.close()
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise MemoryNotMeasured(answer)
    return int(answer)


def _child(sender: Connection, contender: Contender, case: Case, threads: int) -> None:
    try:
        torch.set_num_threads(threads)
        sender.send(measure(contender, case))
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


def measure(contender: Contender, case: Case) -> int:
    """The peak memory of one call in bytes, measured in this process."""
    resettable = can_reset()
    if not resettable:
        step = replace(case, shape=case.shape._replace(T=1))
        run = contender.build(make_problem(step))
        with case.grad_mode():
            run()
    run = contender.build(make_problem(case))
    with case.grad_mode():
        if not resettable:
            before = _max_rss()
            run()
            return _max_rss() - before
        for _ in range(WARM_UP_CALLS):
            run()
        peaks = []
        for _ in range(MEASURED_CALLS):
            release()
            CLEAR_REFS.write_text(RESET_HIGH_WATER_MARK)
            before = _status("VmRSS")
            run()
            peaks.append(max(0, _status("VmHWM") - before))
    return int(median(peaks))


def can_reset() -> bool:
    """Whether the kernel keeps a high-water mark that this process may reset."""
    try:
        CLEAR_REFS.write_text(RESET_HIGH_WATER_MARK)
        return _status("VmHWM") > 0
    except (OSError, LookupError):
        return False


def release() -> None:
    """Returns free memory to the system, where the C library can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """A field of this process's status in bytes; the kernel gives it in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _max_rss() -> int:
    """The largest resident memory so far in bytes. ru_maxrss is in bytes on macOS, else in KiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
