"""From a function of symbols to a program: what its signature says, and what a call of it gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple
from unicodedata import normalize

import torch

from fastrnn.cells.compiler.expression import Expression, leaf, leaves
from fastrnn.cells.compiler.program import Program, program
from fastrnn.cells.compiler.text import is_name
from fastrnn.cells.symbol import Shares, Symbol, expression_of, kind_of
from fastrnn.cells.trace import CellError, Trace

TAKEN = (
    *("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh"),
    *("self", "input", "hx", "lengths", "resets", "return_states"),
)
"""What layers call their own parameters and arguments."""
ATTRIBUTES = (
    *("cell", "gate", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"),
    *("init", "num_heads", "zoneout", "recurrent_dropout", "backend", "recompute", "training", "prepack", "prepacked"),
    "prepacked_weights",
    "reset_parameters",
)
"""What else modules hold by name, as `RecurrentCell` holds a cell's parameters. Inputs of steps may be called so."""
_GATES = "gates must be names, as in gates='ifgo' or gates=('reset', 'update')"


class Step(Symbol):
    """Marks a keyword argument of a cell as an input of each step, (T, B, H), rather than a parameter (H,)."""


def traced(function: Callable[..., Any], gates: Sequence[str] | None) -> Program:
    """The program of a cell's function; see `fastrnn.cell`.

    Raises:
        CellError: it cannot be one.
    """
    if not isinstance(function, FunctionType):
        hint = ": the gates are a keyword, gates=..." if isinstance(function, str) else ""
        raise CellError(f"a cell is made from a function, got {kind_of(function)}{hint}")
    name = function.__name__
    trace = Trace(name, function.__code__)
    if not name.isidentifier():
        trace.refuse("a cell has the name of its function: write def name(x, u, h): ... in place of a lambda")
    signature = _signature(trace, function)
    given = _given(trace, gates)
    runs = []
    for _ in range(2):
        found = list(given)
        after = _run(trace, function, signature, found, known=gates is not None)
        runs.append((after, found))
    if runs[0] != runs[1]:
        trace.refuse("two calls of the function gave two different steps: it must depend on nothing that changes")
    after, found = runs[0]
    used = {gate for kind in ("x", "u") for gate in leaves(after, kind)}
    for what, group, there in (
        ("gate", found, used),
        ("parameter", signature.parameters, leaves(after, "parameter")),
        ("input of a step", signature.inputs, leaves(after, "input")),
    ):
        for one in group:
            if one not in there:
                trace.refuse(f"the {what} {one!r} is never used")
    for one in (*signature.parameters, *signature.inputs):
        if one in found:
            trace.refuse(f"{one!r} is both a gate and an argument: give one of them another name")
        if one[:2] in ("x_", "u_", "a_") and one[2:] in found:
            trace.refuse(f"{one!r} is a share of the gate {one[2:]!r}: give the argument another name")
    if not leaves(after, "x"):
        trace.refuse("no gate has a share of the input: a cell must use x")
    try:
        return program(name, found, signature.states, signature.parameters, signature.inputs, after, trace.names)
    except (ArithmeticError, ValueError) as error:  # of infinite constants
        trace.refuse(f"its derivative has no value: {error}")


def _given(trace: Trace, gates: Sequence[str] | None) -> list[str]:
    if gates is not None and not isinstance(gates, Sequence):
        trace.refuse(f"{_GATES}, got {gates!r}")
    # Letters are those that Python makes of what is written as x.gate.
    given = [normalize("NFKC", gate) if isinstance(gate, str) else gate for gate in gates or ()]
    for gate in given:
        if not (isinstance(gate, str) and is_name(gate) and not gate.startswith("_")):
            trace.refuse(f"{_GATES}, got {gate!r}")
        if given.count(gate) > 1:
            trace.refuse(f"the gate {gate!r} is given twice")
    return given


class _Signature(NamedTuple):
    """What a function takes."""

    shares: list[str]
    """x, and u if the state is multiplied by weights"""
    states: list[str]
    parameters: list[str]
    inputs: list[str]
    """of a step"""


def _signature(trace: Trace, function: FunctionType) -> _Signature:
    positional: list[inspect.Parameter] = []
    keywords: list[inspect.Parameter] = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            trace.refuse(f"{argument}: every argument of a cell must have a name")
        if argument.default is not argument.empty:
            trace.refuse(f"{argument.name} has a default: a layer gives every argument a value")
        if argument.name.startswith("_"):
            trace.refuse(f"{argument.name}: a name of a cell must not begin with _")
        is_keyword = argument.kind is argument.KEYWORD_ONLY
        held = is_keyword and argument.name in ATTRIBUTES and not _is_step(function, argument.annotation)
        if held or argument.name in TAKEN or (is_keyword and hasattr(torch.nn.Module, argument.name)):
            trace.refuse(f"{argument.name} is what layers call one of their own: choose another name")
        (keywords if is_keyword else positional).append(argument)
    names = [argument.name for argument in positional]
    shares = [name for name in names[:2] if name in ("x", "u")]
    states = names[len(shares) :]
    if shares[:1] != ["x"] or not states or {"x", "u"} & {*states, *(a.name for a in keywords)}:
        trace.refuse(
            "the arguments are x, then u if the state is multiplied by weights, then the states, the output first, "
            f"as in (x, u, h, c); got ({', '.join(names)})"
        )
    inputs = [argument.name for argument in keywords if _is_step(function, argument.annotation)]
    return _Signature(shares, states, [a.name for a in keywords if a.name not in inputs], inputs)


def _is_step(function: FunctionType, annotation: object) -> bool:
    """Whether an annotation means `Step`, as a string too, which all are after `from __future__ import annotations`."""
    if not isinstance(annotation, str):
        return annotation is Step
    try:
        return _is_step(function, eval(annotation, function.__globals__))
    except Exception:  # a name of a function around it, or for type checkers alone
        return annotation.rpartition(".")[2] == Step.__name__


def _run(
    trace: Trace, function: FunctionType, signature: _Signature, found: list[str], *, known: bool
) -> list[Expression]:
    """The states after the step; `found` gains the gates that are used, in the order of their first use."""
    positional: list[Any] = [Shares(trace, kind, found, known) for kind in signature.shares]
    positional += [Symbol(trace, leaf("before", state)) for state in signature.states]
    keywords = {name: Symbol(trace, leaf("parameter", name)) for name in signature.parameters}
    keywords |= {name: Symbol(trace, leaf("input", name)) for name in signature.inputs}
    with trace.at_work():
        result = function(*positional, **keywords)
    values = result if isinstance(result, tuple) else (result,)
    wrong = [kind_of(value) for value in values if not isinstance(value, Symbol)]
    if wrong or len(values) != len(signature.states):
        got = wrong[0] if wrong else f"{len(values)} values"
        trace.refuse(f"it must return the states after the step, {', '.join(signature.states)}, got {got}")
    return [expression_of(trace, value) for value in values]
