"""Blocks of work that one thread does, with others that help where they happen to be awake.

The caller does the blocks of a phase from the first on; helpers take them from the last. It waits for a helper only
where that has taken a block, never for one to come: where other programs keep the processors busy, it does all itself.
Helpers look for the next phase for a while, and then sleep until the caller wakes them.

A claim is one number: the phase, how many blocks the caller has taken, and how many the helpers have. It is changed for
the phase that was seen, or not at all, so that a helper which was away for long takes nothing. What a phase's blocks
are stands in one of two places in turn; it is read before the claim, and stays as it was for as long as the claim can
succeed.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastrnn.backends.numba.arguments import LINE_WORDS
from fastrnn.backends.numba.kernels.inner import inner
from fastrnn.backends.numba.kernels.simd import INDEX, is_arm, is_x86

CLAIM, DONE, PHASE, ASLEEP, STOP, EXPECTED, FIRST_WORK = (line * LINE_WORDS for line in range(7))
"""Where in the shared memory, in numbers: each has a line of the cache for itself. `EXPECTED` is the caller's own."""
WORK_WORDS = 2 * LINE_WORDS
"""What one phase's work may take."""
CLAIMS_WORDS = FIRST_WORK + 2 * WORK_WORDS
_SPINS = 2000
"""How often a helper looks for a phase before it sleeps, with a pause of some 15 to 60 ns each."""
_BITS = 16
"""Of each of the two counts."""
_ONE_FIRST, _ONE_LAST = 1 << _BITS, 1
_COUNT = (1 << _BITS) - 1


def _at(builder: Any, place: Any) -> Any:
    return builder.inttoptr(place, INDEX.as_pointer())


@intrinsic
def read(typing: Any, place: Any) -> Any:
    """The int64 at `place`, and after it whatever its writer wrote before it."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_at(builder, args[0]), "seq_cst", 8)

    return types.int64(types.intp), emit


@intrinsic
def write(typing: Any, place: Any, value: Any) -> Any:
    """As the counterpart of `read`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _at(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), emit


@intrinsic
def add(typing: Any, place: Any, value: Any) -> Any:
    """Adds to the int64 at `place` -> what it was before."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _at(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.intp, types.int64), emit


@intrinsic
def exchange(typing: Any, place: Any, before: Any, after: Any) -> Any:
    """Whether the int64 at `place` was `before`, and is `after` now."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found = builder.cmpxchg(_at(builder, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.intp, types.int64, types.int64), emit


@intrinsic
def pause(typing: Any) -> Any:
    """Tells the processor that a thread is waiting."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        nothing = ir.FunctionType(ir.VoidType(), [])
        if is_x86():
            builder.call(builder.module.globals.get(_X86) or ir.Function(builder.module, nothing, _X86), [])
        elif is_arm():
            builder.asm(nothing, "yield", "", [], True)
        return context.get_dummy_value()

    return types.void(), emit


_X86 = "llvm.x86.sse2.pause"


@intrinsic
def call_with(typing: Any, function: Any, argument: Any) -> Any:
    """Calls the C function int (*)(void *) at an address."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [INDEX])
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]]), INDEX)

    return types.int64(types.intp, types.intp), emit


@inner
def word(claims: int, number: int) -> Any:
    """Where one of the shared numbers is."""
    return claims + 8 * number


@inner
def take(claims: int, phase: int, blocks: int, one: int) -> Any:
    """Claims a block of this phase, the next first one (`_ONE_FIRST`) or last one -> its number; -1 without any."""
    place = word(claims, CLAIM)
    while True:
        claim = read(place)
        first, last = (claim >> _BITS) & _COUNT, claim & _COUNT
        if claim >> (2 * _BITS) != phase or first + last >= blocks:
            return -1
        if exchange(place, claim, claim + one):
            return first if one == _ONE_FIRST else blocks - 1 - last


@inner
def take_first(claims: int, phase: int, blocks: int) -> Any:
    return take(claims, phase, blocks, _ONE_FIRST)


@inner
def take_last(claims: int, phase: int, blocks: int) -> Any:
    return take(claims, phase, blocks, _ONE_LAST)


@inner
def next_phase(claims: int) -> Any:
    """The number of the phase that the caller is about to begin, of 31 bits."""
    return (read(word(claims, PHASE)) + 1) & 0x7FFFFFFF


@inner
def work_at(claims: int, phase: int) -> Any:
    """Where a phase's work stands."""
    return word(claims, FIRST_WORK + (phase & 1) * WORK_WORDS)


@inner
def begin(claims: int, phase: int, semaphore: int, post: int) -> None:
    """The work of the phase has been written: helpers may take blocks; those that sleep are woken."""
    write(word(claims, CLAIM), phase << (2 * _BITS))
    write(word(claims, PHASE), phase)
    asleep = word(claims, ASLEEP)
    while True:
        sleeping = read(asleep)
        if sleeping <= 0:
            return
        if exchange(asleep, sleeping, sleeping - 1):
            call_with(post, semaphore)


@inner
def done(claims: int) -> None:
    """A helper has done a block."""
    add(word(claims, DONE), 1)


@inner
def finish(claims: int, helped: int) -> None:
    """Waits until the helpers have done so many blocks of this phase."""
    expected = word(claims, EXPECTED)
    total = read(expected) + helped
    write(expected, total)
    while read(word(claims, DONE)) < total:
        pause()


@inner
def wait(claims: int, seen: int, semaphore: int, sleep: int) -> Any:
    """A helper waits for a phase other than the one it has seen -> its number; -1 where it is to stop."""
    place, asleep, spins = word(claims, PHASE), word(claims, ASLEEP), 0
    while True:
        if read(word(claims, STOP)) != 0:
            return -1
        phase = read(place)
        if phase != seen:
            return phase
        spins += 1
        if spins <= _SPINS:
            pause()
            continue
        spins = 0
        add(asleep, 1)
        if read(place) != seen or read(word(claims, STOP)) != 0:
            # Nobody may have counted on this one's being woken: it takes its number back, or the post that was sent.
            while True:
                sleeping = read(asleep)
                if sleeping <= 0:
                    call_with(sleep, semaphore)
                    break
                if exchange(asleep, sleeping, sleeping - 1):
                    break
        else:
            call_with(sleep, semaphore)
