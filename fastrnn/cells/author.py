"""From a function of symbols to a program: what its signature says, and what a call of it gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from fastrnn.cells.compiler.expression import Expression, leaf, leaves
from fastrnn.cells.compiler.program import Program, program
from fastrnn.cells.symbol import Symbol, expression_of
from fastrnn.cells.trace import CellError, Trace

TAKEN = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh", "lengths", "resets", "input", "hx")
"""What layers call their own parameters and arguments."""


class Step:
    """Marks a keyword argument of a cell as an input of each step, (T, B, H), rather than a parameter (H,)."""


class _Shares:
    """x or u of a cell's function: an attribute for each gate."""

    def __init__(self, trace: Trace, kind: str, gates: list[str], known: bool) -> None:
        self._trace, self._kind, self._gates, self._known = trace, kind, gates, known

    def __getattr__(self, gate: str) -> Symbol:
        if gate.startswith("__"):
            raise AttributeError(gate)
        if gate.startswith("_"):
            self._trace.refuse(f"{self._kind}.{gate}: a gate's name must not begin with _")
        if gate not in self._gates:
            if self._known:
                self._trace.refuse(f"{self._kind}.{gate}: the cell has no gate {gate!r}, only {_list(self._gates)}")
            self._gates.append(gate)
        return Symbol(self._trace, leaf(self._kind, gate))

    def __getitem__(self, index: Any) -> Any:
        self._trace.refuse(f"{self._kind}[...]: gates have names, as in {self._kind}.i")

    def _no_number(self, *_: Any) -> Any:
        self._trace.refuse(f"{self._kind} has a value for each gate: name one, as in {self._kind}.i")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _no_number
    __iter__ = __bool__ = __float__ = __len__ = _no_number


def traced(function: Callable[..., Any], gates: Sequence[str] | None, name: str | None = None) -> Program:
    """The program of a cell's function; see `fastrnn.cell`.

    Raises:
        CellError: it cannot be one.
    """
    if not isinstance(function, FunctionType):
        raise CellError(f"a cell is made from a function, got a {type(function).__name__}")
    name = name or function.__name__
    trace = Trace(name, function.__code__)
    if not name.isidentifier():
        trace.refuse("a cell has the name of its function: write def name(x, u, h): ... in place of a lambda")
    shares, states, parameters, inputs = _signature(trace, function)
    given = _given(trace, gates)
    runs = []
    for _ in range(2):
        found = list(given)
        after = _run(trace, function, shares, states, parameters, inputs, found, known=gates is not None)
        runs.append((after, found))
    if runs[0] != runs[1]:
        trace.refuse("two calls of the function gave two different steps: it must depend on nothing that changes")
    after, found = runs[0]
    used = {gate for kind in ("x", "u") for gate in leaves(after, kind)}
    for what, group, there in (
        ("gate", found, used),
        ("parameter", parameters, leaves(after, "parameter")),
        ("input of a step", inputs, leaves(after, "input")),
    ):
        for one in group:
            if one not in there:
                trace.refuse(f"the {what} {one!r} is never used")
    for one in found:
        if one in (*parameters, *inputs):
            trace.refuse(f"{one!r} is both a gate and an argument: give one of them another name")
    if not leaves(after, "x"):
        trace.refuse("no gate has a share of the input: a cell must use x")
    return program(name, found, states, parameters, inputs, after, trace.names)


def _given(trace: Trace, gates: Sequence[str] | None) -> list[str]:
    given = list(gates or ())
    for gate in given:
        if not (isinstance(gate, str) and gate.isidentifier() and not gate.startswith("_")):
            trace.refuse(f"gates must be names, as in gates='ifgo' or gates=('reset', 'update'), got {gate!r}")
        if given.count(gate) > 1:
            trace.refuse(f"the gate {gate!r} is given twice")
    return given


def _signature(trace: Trace, function: FunctionType) -> tuple[list[str], list[str], list[str], list[str]]:
    """Which of x and u the function takes, its states, parameters and inputs of a step."""
    positional: list[inspect.Parameter] = []
    keywords: list[inspect.Parameter] = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            trace.refuse(f"*{argument.name}: every argument of a cell must have a name")
        if argument.default is not argument.empty:
            trace.refuse(f"{argument.name} has a default: a layer gives every argument a value")
        if argument.name.startswith("_"):
            trace.refuse(f"{argument.name}: a name of a cell must not begin with _")
        if argument.name in TAKEN:
            trace.refuse(f"{argument.name} is what layers call one of their own: choose another name")
        (keywords if argument.kind is argument.KEYWORD_ONLY else positional).append(argument)
    names = [argument.name for argument in positional]
    shares = [name for name in names[:2] if name in ("x", "u")]
    states = names[len(shares) :]
    if shares[:1] != ["x"] or not states or {"x", "u"} & {*states, *(a.name for a in keywords)}:
        trace.refuse(
            "the arguments are x, then u if the state is multiplied by weights, then the states, the output first, "
            f"as in (x, u, h, c); got ({', '.join(names)})"
        )
    inputs = [argument.name for argument in keywords if _is_step(argument.annotation)]
    return shares, states, [a.name for a in keywords if a.name not in inputs], inputs


def _is_step(annotation: Any) -> bool:
    return annotation is Step or (isinstance(annotation, str) and annotation.rpartition(".")[2] == Step.__name__)


def _run(
    trace: Trace,
    function: FunctionType,
    shares: Sequence[str],
    states: Sequence[str],
    parameters: Sequence[str],
    inputs: Sequence[str],
    found: list[str],
    *,
    known: bool,
) -> list[Expression]:
    """The states after the step; `found` gains the gates that are used, in the order of their first use."""
    positional: list[Any] = [_Shares(trace, kind, found, known) for kind in shares]
    positional += [Symbol(trace, leaf("before", state)) for state in states]
    keywords = {name: Symbol(trace, leaf("parameter", name)) for name in parameters}
    keywords |= {name: Symbol(trace, leaf("input", name)) for name in inputs}
    with trace.at_work():
        result = function(*positional, **keywords)
    values = list(result) if isinstance(result, tuple) else [result]
    if len(values) != len(states):
        trace.refuse(f"it must return the {len(states)} states after the step, {_list(states)}, got {len(values)}")
    for value in values:
        if not isinstance(value, Symbol):
            trace.refuse(f"it must return the states after the step, {_list(states)}, got a {type(value).__name__}")
    return [expression_of(trace, value) for value in values]


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
