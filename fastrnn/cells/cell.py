"""`fastrnn.cell`: a cell from the function that says what its step computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, overload

from fastrnn.cells.author import traced
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.contract import Cell
from fastrnn.cells.files import code


@overload
def cell(function: Callable[..., Any]) -> Cell: ...


@overload
def cell(*, gates: Sequence[str] | None = None) -> Callable[[Callable[..., Any]], Cell]: ...


def cell(function: Callable[..., Any] | None = None, *, gates: Sequence[str] | None = None) -> Any:
    """Makes a recurrent cell from a function.

    The function tells what one step computes of one unit of one sequence: `x.i` is the gate i's share of the input's
    product, `u.i` that of the state's, both with their bias; then come the states before the step, the output first. It
    returns the states after the step. Keyword arguments are parameters, one value for each unit, or, annotated with
    `fastrnn.cells.Step`, inputs of each step. It is made of `+`, `-`, `*`, `/`, numbers, and the functions of
    `fastrnn.cells`.

    Args:
        function: of x, u if the state is multiplied by weights at all, and the states.
        gates: the gates in the order of the weights' rows; by default that of their first use.

    Raises:
        CellError: a TypeError; the message names the cell, the line, and what to write instead.

    Example:
        >>> import fastrnn
        >>> from fastrnn.cells import mix, sigmoid, tanh
        >>> @fastrnn.cell(gates="fn")
        ... def minimal_gated_unit(x, u, h):
        ...     f = sigmoid(x.f + u.f)
        ...     return mix(f, tanh(x.n + f * u.n), h)
        >>> minimal_gated_unit.saved
        ('n', 'f', 'u_n')
    """
    if function is None:
        return lambda function: _made(function, gates)
    return _made(function, gates)


def of_program(program: Program, *, kept: bool) -> Cell:
    """The cell of a program; with `kept` its code is written to a file for its user."""
    namespace: dict[str, Any] = {}  # without __name__: torch.compile would import the module of that name
    exec(code(program, "pytorch", kept=kept), namespace)
    return replace(namespace["CELLS"][program.name], program=program)  # type: ignore[no-any-return]


def _made(function: Callable[..., Any], gates: Sequence[str] | None) -> Cell:
    program = traced(function, gates)
    built_in = (function.__module__ or "").rpartition(".")[0] == "fastrnn.cells"  # those have their files already
    made = of_program(program, kept=not built_in)
    shown = {name: getattr(function, name) for name in ("__module__", "__name__", "__qualname__", "__doc__")}
    for name, value in {**shown, "__wrapped__": function}.items():  # by help() and inspect, as of a function
        object.__setattr__(made, name, value)
    return made
