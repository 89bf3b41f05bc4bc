"""What lengths and resets mean for step t: docs/design.md, "Semantics". Arguments are tiles or numbers.

`backwards` says whether the forward runs from the end; "before" and "after" are meant in its order. Where there are no
lengths `length` is None.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def live(t, length):
    """Whether step t belongs to the sequence.

    One that does not leaves the states as they are, gives zero, and hands their gradients on unchanged.
    """
    return t < length


@triton.jit
def entry(t, backwards):
    """Where a reset lies that cuts between step t and the one before it: one at k lies between steps k - 1 and k."""
    return t + tl.where(backwards, 1, 0)


@triton.jit
def exit(t, backwards):
    """Where a reset lies that cuts between step t and the one after it."""
    return t + tl.where(backwards, 0, 1)


@triton.jit
def cut(reset, k, length):
    """Whether `reset`, what lies at k, cuts: the states that pass k are zero then, and no gradient passes it.

    One that lies at a step which is not live does not.
    """
    if length is None:
        return reset != 0
    else:
        return (reset != 0) & live(k, length)


@triton.jit
def starts(is_first, t, length, backwards):
    """Whether no live step comes before the live step t, so that, cuts aside, the initial states enter it.

    `is_first`: whether no step at all comes before it. What is said of a step that is not live is of no consequence.
    """
    if length is None:
        return is_first
    else:
        return is_first | (backwards & (t == length - 1))
