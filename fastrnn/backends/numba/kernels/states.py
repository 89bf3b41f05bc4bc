"""A cell's states beside h, none, one or many: where they are, and what is done to each.

An argument of a kernel that stands for them is the address of the one there is, or that of a table of addresses where
there are more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.backends.numba.kernels.inner import forced
from fastrnn.backends.numba.kernels.rows import clear_row, copy_row, fetch_row
from fastrnn.backends.numba.kernels.simd import address, lanes, load, load_int, load_some, store, store_some


class OtherStates(NamedTuple):
    """Functions of all of them. `at` is where in each argument, in elements, `apart` how far scratch memories lie; a
    row has `count` units, and of a vector `some` exist."""

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
    take_vector: Any
    """`take_vector(like, argument, at, scratch, apart, some)`"""
    fetch_vector: Any
    """as `take_vector`, with zeros for what is not there"""
    put: Any
    """`put(like, scratch, apart, argument, at, some)` copies a vector of each the other way"""
    add: Any
    """`add(like, argument, at, scratch, apart, some)` adds a vector to each"""
    vectors: Any
    """`vectors(like, argument, at, memory, some)` -> where a vector of each is, side by side: in the memory if there
    are several, zeros of what is not there"""


def other_states(states: int) -> OtherStates:
    """For cells with so many states, h included."""
    is_table = states > 2

    @forced
    def base(argument: Any, number: int) -> Any:
        return load_int(argument, number) if is_table else argument

    @forced
    def base_or_zero(argument: Any, number: int) -> Any:
        found = argument
        if is_table and argument != 0:
            found = load_int(argument, number)
        return found

    @forced
    def take(number: int, like: Any, argument: Any, at: int, scratch: int, apart: int, count: int) -> None:
        copy_row(like, address(like, base(argument, number), at), address(like, scratch, number * apart), count)

    @forced
    def fetch(number: int, like: Any, argument: Any, at: int, scratch: int, apart: int, count: int) -> None:
        source = base_or_zero(argument, number)
        source = address(like, source, at) if source != 0 else 0
        fetch_row(like, source, address(like, scratch, number * apart), count)

    @forced
    def give(number: int, like: Any, scratch: int, apart: int, argument: Any, at: int, count: int) -> None:
        copy_row(like, address(like, scratch, number * apart), address(like, base(argument, number), at), count)

    @forced
    def clear(number: int, like: Any, scratch: int, apart: int, count: int) -> None:
        clear_row(like, address(like, scratch, number * apart), count)

    @forced
    def clear_out(number: int, like: Any, argument: Any, at: int, count: int) -> None:
        clear_row(like, address(like, base(argument, number), at), count)

    @forced
    def take_vector(number: int, like: Any, argument: Any, at: int, scratch: int, apart: int, some: int) -> None:
        store(scratch, number * apart, load_some(like, base(argument, number), at, some))

    @forced
    def fetch_vector(number: int, like: Any, argument: Any, at: int, scratch: int, apart: int, some: int) -> None:
        source = base_or_zero(argument, number)
        store(scratch, number * apart, load_some(like, source, at, some) if source != 0 else like)

    @forced
    def put(number: int, like: Any, scratch: int, apart: int, argument: Any, at: int, some: int) -> None:
        store_some(base(argument, number), at, load(like, scratch, number * apart), some)

    @forced
    def add(number: int, like: Any, argument: Any, at: int, scratch: int, apart: int, some: int) -> None:
        source = base(argument, number)
        if not is_table or source != 0:
            more = load_some(like, source, at, some)
            store(scratch, number * apart, load(like, scratch, number * apart) + more)

    fetch_vectors = for_each(states - 1, fetch_vector)

    @forced
    def vectors(like: Any, argument: Any, at: int, memory: int, some: int) -> Any:
        if is_table:
            fetch_vectors(like, argument, at, memory, lanes(like), some)
            return memory
        return address(like, argument, at)

    functions = (take, fetch, give, clear, clear_out, take_vector, fetch_vector, put, add)
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
