"""A vector of each of a cell's states beside h, as a step or derivative of a few units needs them.

A block of arguments tells of these states by one address, or, where there are several, by that of a table of theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.backends.numba.kernels.activations import forced
from fastrnn.backends.numba.kernels.simd import lanes, load, load_int, load_some, store, store_some


class OtherVectors(NamedTuple):
    """Functions of an argument that tells of the states, `at` which of their units, and vectors side by side."""

    fetch: Any
    """`fetch(like, argument, at, vectors, some)`"""
    receive: Any
    """as `fetch`, with zeros for what is not there"""
    put: Any
    """`put(like, vectors, argument, at, some)`"""


def other_vectors(states: int) -> OtherVectors:
    """For cells with so many states, h included."""
    is_table = states > 2

    @forced
    def fetch(number: int, like: Any, argument: int, at: int, vectors: int, some: int) -> None:
        base = load_int(argument, number) if is_table else argument
        store(vectors, number * lanes(like), load_some(like, base, at, some))

    @forced
    def receive(number: int, like: Any, argument: int, at: int, vectors: int, some: int) -> None:
        base = load_int(argument, number) if is_table else argument
        store(vectors, number * lanes(like), load_some(like, base, at, some) if base != 0 else like)

    @forced
    def put(number: int, like: Any, vectors: int, argument: int, at: int, some: int) -> None:
        base = load_int(argument, number) if is_table else argument
        store_some(base, at, load(like, vectors, number * lanes(like)), some)

    return OtherVectors(*(_for_each(states - 1, function) for function in (fetch, receive, put)))


def _for_each(count: int, do: Any) -> Any:
    """A function of some arguments that calls `do` with a number before them, for each of so many.

    Without a loop where there is one at most: LLVM finds that out too late.
    """
    if count == 0:

        @forced
        def each(*arguments: Any) -> None:
            pass

    elif count == 1:

        @forced
        def each(*arguments: Any) -> None:
            do(0, *arguments)

    else:

        @forced
        def each(*arguments: Any) -> None:
            for number in range(count):
                do(number, *arguments)

    return each
