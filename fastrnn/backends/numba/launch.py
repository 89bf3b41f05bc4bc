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
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from time import perf_counter

import torch

from fastrnn.backends.numba import sharing
from fastrnn.backends.numba.arguments import ALONE, NEVER, ParallelArguments
from fastrnn.backends.numba.compile import PARALLEL, kernel
from fastrnn.backends.numba.sharing import Pace

RUNTIMES = ("libgomp", "libiomp5", "libomp")
"""OpenMP runtimes that export GOMP_parallel(void (*)(void *), void *, unsigned threads, unsigned flags)."""

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
    return torch.get_num_threads() if can_share() else 1


def can_share() -> bool:
    """Whether there is an OpenMP runtime, and this process may use it."""
    return not _forked and runtime_address("GOMP_parallel") != 0


def alone(address: int, block: Sequence[int]) -> None:
    """Calls a kernel that one thread computes, with its only block of arguments; the GIL is released meanwhile."""
    call(address, array("q", block))


def call(address: int, blocks: array[int]) -> None:
    """As `alone`, with blocks that lie in memory already."""
    _callable(address)(blocks.buffer_info()[0])


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
    return array("q", (0, ALONE))


def start(address: int, threads: int, memory: array[int], counter_field: int, pace: Pace) -> None:
    """`run`, with the blocks of arguments in one piece of memory that began as `no_blocks`."""
    counter = memory.buffer_info()[0]
    memory[HEADER + counter_field] = counter
    blocks = counter + HEADER * memory.itemsize
    if threads == 1 or not can_share():
        _callable(address)(blocks)
    elif sharing.is_welcome(pace):
        memory[1] = NEVER
        sharing.shared(pace, _share(address, blocks, threads))
    else:
        began = perf_counter()
        _callable(address)(blocks)
        sharing.alone(pace, perf_counter() - began)


def _share(address: int, blocks: int, threads: int) -> float:
    """Has the kernel at `address` called with its blocks by so many threads -> the seconds that it took."""
    launch = array("q", ParallelArguments(address, blocks, threads, *_runtime_functions(), nanoseconds=0))
    _callable(kernel("", PARALLEL, torch.float32).address)(launch.buffer_info()[0])
    return launch[-1] * 1e-9


@cache
def _runtime_functions() -> tuple[int, int]:
    return runtime_address("GOMP_parallel"), runtime_address("omp_get_wtime")
