"""Runs a kernel on torch's own threads: as many as `torch.get_num_threads()` says, fewer where work is small.

The parallel region is opened in the OpenMP runtime that torch has loaded, so that its pool of threads is shared and
nothing is oversubscribed. Every thread that shows up takes tickets until none is left, so that any number of threads,
one included, does all the work; threads wait for each other only in a kernel's teams, which count who is there first.
Without such a runtime, and in a forked child, whose pool GNU OpenMP lost in the fork, the calling thread works alone;
so it does while other programs keep the processors busy (`sharing.py`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from array import array
from collections.abc import Callable, Iterable
from functools import cache
from time import perf_counter

import torch

from fastrnn.backends.numba import sharing
from fastrnn.backends.numba.sharing import Pace

RUNTIMES = ("libgomp", "libiomp5", "libomp")
"""OpenMP runtimes that export GOMP_parallel(void (*)(void *), void *, unsigned threads, unsigned flags)."""

NEVER = -1
"""No step: the team stays together."""

_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


@cache
def _runtime() -> ctypes.CDLL | None:
    """The OpenMP runtime in this process; None if there is none, or not one that exports GOMP_parallel."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open("/proc/self/maps") as maps:
            paths = dict.fromkeys(line.split(maxsplit=5)[5].strip() for line in maps if "/" in line)
    except OSError:
        return None
    for path in paths:
        if os.path.basename(path).startswith(RUNTIMES):
            try:
                runtime = ctypes.CDLL(path)
            except OSError:
                continue
            if hasattr(runtime, "GOMP_parallel"):
                return runtime
    return None


@cache
def parallel() -> Callable[[int, int, int, int], None] | None:
    """GOMP_parallel (function, data, threads, flags); None if there is none."""
    runtime = _runtime()
    if runtime is None:
        return None
    function = runtime.GOMP_parallel
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function


@cache
def runtime_address(name: str) -> int:
    """Of a function of the OpenMP runtime; 0 if there is none."""
    runtime = _runtime()
    return 0 if runtime is None else ctypes.cast(runtime[name], ctypes.c_void_p).value or 0


def team_functions() -> dict[str, int]:
    """The addresses of what the threads of a team call, by the names of arguments."""
    return {
        "thread_count": runtime_address("omp_get_num_threads"),
        "barrier": runtime_address("GOMP_barrier"),
        "clock": runtime_address("omp_get_wtime"),
    }


@cache
def _callable(address: int) -> Callable[[int], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


def available_threads() -> int:
    """How many threads a launch may use."""
    return 1 if _forked or parallel() is None else torch.get_num_threads()


def run(address: int, threads: int, blocks: Iterable[Iterable[int]], counter_field: int, pace: Pace) -> None:
    """Calls the kernel at `address` with blocks of arguments.

    In the first, field number `counter_field` becomes the address of the ticket counter. The GIL is released meanwhile.
    What the addresses among the arguments point to must outlive the call. `pace` is that of all launches of this kernel
    over these sizes.
    """
    memory = no_blocks()
    for block in blocks:
        memory.extend(block)
    start(address, threads, memory, counter_field, pace)


HEADER = 2
"""Numbers before a launch's blocks: the ticket counter, and the step after which teams dissolve (`kernels/team.py`)."""


def no_blocks() -> array[int]:
    """A launch's memory, to which blocks of arguments are to be added."""
    return array("q", (0, NEVER))


def start(address: int, threads: int, memory: array[int], counter_field: int, pace: Pace) -> None:
    """`run`, with the blocks of arguments in one piece of memory that began as `no_blocks`."""
    counter = memory.buffer_info()[0]
    memory[HEADER + counter_field] = counter
    blocks = counter + HEADER * memory.itemsize
    team = parallel() if threads > 1 and not _forked else None
    if team is None:
        _callable(address)(blocks)
        return
    welcome = sharing.is_welcome(pace)
    began = perf_counter()
    if welcome:
        team(address, blocks, threads, 0)
        sharing.shared(pace, began)
    else:
        _callable(address)(blocks)
        sharing.alone(pace, began)
