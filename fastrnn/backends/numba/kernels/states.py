"""A cell's states beside h, none, one or many: where they are, and what is done to each.

An argument of a kernel that stands for them is the address of the one there is, or that of a table of addresses where
there are more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.backends.numba.kernels.activations import forced
from fastrnn.backends.numba.kernels.rows import clear_row, copy_row, fetch_row
from fastrnn.backends.numba.kernels.simd import address, lanes, load, load_int, load_some, store, store_some


class OtherStates(NamedTuple):
    """Functions of all of them. `at` is where in each argument, in elements, `apart` how far scratch memories lie."""

    take: Any
    """`take(like, argument, at, scratch, apart, count)` copies a row of each into scratch memory"""
    fetch: Any
    """as `take`, but a row of what is not there is cleared"""
    give: Any
    """`give(like, scratch, apart, argument, at, count)` copies a row of each the other way"""
    clear: Any
    """`clear(like, scratch, apart, count)`, a row of each"""
    clear_out: Any
    """`clear_out(like, argument, at, count)`"""
    put: Any
    """`put(like, scratch, apart, argument, at, some)`: a vector of each, of which `some` units exist"""
    add: Any
    """`add(like, argument, at, scratch, apart, some)` adds a vector to each"""
    vectors: Any
    """`vectors(like, argument, at, memory, some)` -> where a vector of each is, side by side: in the memory if there
    are several"""


def other_states(states: int) -> OtherStates:
    """For cells with so many states, h included."""
    is_table = states > 2

    @forced
    def place(like: Any, argument: Any, number: int, at: int) -> Any:
        base = load_int(argument, number) if is_table else argument
        return address(like, base, at)

    @forced
    def take(number: int, like: Any, argument: Any, at: int, scratch: int, apart: int, count: int) -> None:
        copy_row(like, place(like, argument, number, at), address(like, scratch, number * apart), count)

    @forced
    def fetch(number: int, like: Any, argument: Any, at: int, scratch: int, apart: int, count: int) -> None:
        base = argument
        if is_table and argument != 0:
            base = load_int(argument, number)
        fetch_row(like, address(like, base, at) if base != 0 else 0, address(like, scratch, number * apart), count)

    @forced
    def give(number: int, like: Any, scratch: int, apart: int, argument: Any, at: int, count: int) -> None:
        copy_row(like, address(like, scratch, number * apart), place(like, argument, number, at), count)

    @forced
    def clear(number: int, like: Any, scratch: int, apart: int, count: int) -> None:
        clear_row(like, address(like, scratch, number * apart), count)

    @forced
    def clear_out(number: int, like: Any, argument: Any, at: int, count: int) -> None:
        clear_row(like, place(like, argument, number, at), count)

    @forced
    def put(number: int, like: Any, scratch: int, apart: int, argument: Any, at: int, some: int) -> None:
        store_some(place(like, argument, number, at), 0, load(like, scratch, number * apart), some)

    @forced
    def add(number: int, like: Any, argument: Any, at: int, scratch: int, apart: int, some: int) -> None:
        base = load_int(argument, number) if is_table else argument
        if not is_table or base != 0:
            more = load_some(like, base, at, some)
            store(scratch, number * apart, load(like, scratch, number * apart) + more)

    @forced
    def vectors(like: Any, argument: Any, at: int, memory: int, some: int) -> Any:
        if is_table:
            for number in range(states - 1):
                value = load_some(like, place(like, argument, number, at), 0, some)
                store(memory, number * lanes(like), value)
            return memory
        return address(like, argument, at)

    functions = (take, fetch, give, clear, clear_out, put, add)
    return OtherStates(*[*(for_each(states - 1, function) for function in functions), vectors])


def for_each(count: int, do: Any) -> Any:
    """A function of some arguments that calls `do` with a number before them, for each of so many.

    Without a loop where there is one at most: LLVM would find that out too late.
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
