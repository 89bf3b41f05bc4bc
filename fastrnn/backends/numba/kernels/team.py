"""Threads that share one slice of the batch and meet after every step, through the OpenMP runtime's own functions.

Its barrier spins for a moment and sleeps then: a barrier that gives way by sched_yield took up to 260 ms for a call of
one, where another program kept the processors busy.

Where a member has lost its processor to another program, the others wait a whole time slice for it. Once such waits are
half of the time, the team dissolves: after one more step the first member of each goes on alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastrnn.backends.numba.arguments import ALONE
from fastrnn.backends.numba.kernels.inner import inner
from fastrnn.backends.numba.kernels.simd import INDEX

PATIENCE = 1e-3
"""Seconds of a wait that may come of the members' shares being uneven: time slices are several milliseconds long."""
PATIENCE_PER_PRODUCT = 1e-9
"""Seconds more for each multiplication between two meetings that not all members have, ten times what one takes."""
DISSOLVES_AFTER = 8
"""Where the step lies after which a team dissolves, in bytes from the ticket counter."""


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


@intrinsic
def seconds(typing: Any, clock: Any) -> Any:
    """The time, by the C function double (*)(void) at the address."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.DoubleType(), [])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])

    return types.float64(types.intp), emit


@intrinsic
def look(typing: Any, place: Any) -> Any:
    """The int64 at `place`, which other threads may write."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.inttoptr(args[0], INDEX.as_pointer())
        return builder.load_atomic(at, "monotonic", INDEX.width // 8)

    return types.int64(types.intp), emit


@intrinsic
def tell(typing: Any, place: Any, value: Any) -> Any:
    """Writes the int64 at `place`, which other threads may read."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.inttoptr(args[0], INDEX.as_pointer())
        builder.store_atomic(args[1], at, "monotonic", INDEX.width // 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), emit


@inner
def team_members(a: Any, owners: int) -> Any:
    """How many threads share the units of each of the owners: as was planned, if all threads that this takes are here.

    All threads of the region meet, so each must be a member of a team: with fewer, each owner has one thread. A thread
    that works alone is not asked: the region may be one of a caller's.
    """
    if a.team == 1 or look(a.counter + DISSOLVES_AFTER) == ALONE:
        return 1
    return a.team if team_size(a.thread_count) == owners * a.team else 1


@inner
def stay(a: Any, counter: int, step: int, products: int, decides: bool, since: float, waited: float) -> Any:
    """Meets all others after a step, the first being 0 -> whether the teams stay together, seconds waited until now.

    `since` is when the first step began, `waited` what was returned after the last one. One thread decides, before the
    meeting after the next step, so that all know of it when they leave that one: a member that is late must not take it
    for the end of an earlier step, which is why the step itself is told.
    """
    place = counter + DISSOLVES_AFTER
    began = seconds(a.clock) if decides else 0.0
    meet(a.barrier)
    if look(place) == step:
        return False, waited
    if decides:
        now = seconds(a.clock)
        waited += now - began
        long = now - began > PATIENCE + products * PATIENCE_PER_PRODUCT
        if long and 2 * waited > now - since:
            tell(place, step + 1)
    return True, waited
