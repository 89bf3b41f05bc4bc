"""A vector of each of a cell's states beside h, as a step or derivative of a few units needs them.

A block of arguments tells of these states by one address, or, where there are several, by that of a table of theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.backends.numba.kernels.activations import forced
from fastrnn.backends.numba.kernels.simd import lanes, load, load_int, load_some, store, store_some
from fastrnn.backends.numba.kernels.states import for_each


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
        base = argument
        if is_table and argument != 0:
            base = load_int(argument, number)
        store(vectors, number * lanes(like), load_some(like, base, at, some) if base != 0 else like)

    @forced
    def put(number: int, like: Any, vectors: int, argument: int, at: int, some: int) -> None:
        base = load_int(argument, number) if is_table else argument
        store_some(base, at, load(like, vectors, number * lanes(like)), some)

    return OtherVectors(*(for_each(states - 1, function) for function in (fetch, receive, put)))
