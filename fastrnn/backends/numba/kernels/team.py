"""Threads that share one slice of the batch and meet after every step, through the OpenMP runtime's own functions.

Its barrier spins for a moment and sleeps then: a barrier that gives way by sched_yield took up to 260 ms for a call of
one, where another program kept the processors busy.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fastrnn.backends.numba.kernels.simd import INDEX


@intrinsic
def team_size(typing: Any, thread_count: Any) -> Any:
    """The number of threads in this parallel region, by the C function int (*)(void) at the address."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), []), INDEX)

    return types.intp(types.intp), emit


@intrinsic
def meet(typing: Any, barrier: Any) -> Any:
    """Waits for every thread of the parallel region to come here, by the C function void (*)(void) at the address."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.intp), emit


@njit(error_model="numpy", forceinline=True)
def team_members(a: Any, owners: int) -> Any:
    """How many threads share the units of each of the owners: as was planned, if all threads that this takes are here.

    All threads of the region meet, so each must be a member of a team: with fewer, each owner has one thread.
    """
    return a.team if a.team > 1 and team_size(a.thread_count) == owners * a.team else 1
