"""A program as plain PyTorch, over tensors (..., H): what the reference computes with, and its contract.

It is made of differentiable operations only, so that autograd can go through the step to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from fastrnn.cells.compiler.expression import ZERO, Expression, below, leaf
from fastrnn.cells.compiler.names import variables
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit import contract
from fastrnn.cells.emit.arguments import unpacked
from fastrnn.cells.emit.numbers import chosen
from fastrnn.cells.emit.writer import ATOM, WIDTH, Form, Language, Writer, tuple_of

LANGUAGE = Language(
    operations={
        **{name: Form(f"torch.{name}({{0}})") for name in ("sigmoid", "tanh", "relu", "exp", "log", "sqrt", "abs")},
        **{name: Form(f"functions.{name}({{0}}, {{1}})") for name in ("maximum", "minimum")},
        "softplus": Form("functions.softplus({0})"),
        "neg": Form("-{0}", 1, (3,)),
        "where_le": Form("torch.where({0} <= {1}, {2}, {3})"),
        "where_lt": Form("torch.where({0} < {1}, {2}, {3})"),
        "mix": Form("(1 - {0}) * {2} + {0} * {1}", 1, (ATOM, 3, 3)),
        "stop_gradient": Form("{0}.detach()", needs=(ATOM,)),
    },
    constant=lambda value: repr(value).removesuffix(".0") if isfinite(value) else f"float('{value}')",
    special=lambda write, e: chosen(
        write, e, "torch.where({a} {sign} {b}, torch.full_like({typed}, {then}), {otherwise})"
    ),
)
TAKEN = frozenset(
    ["torch", "float", "functions", "gx", "gh", "before", "after", "saved", "d_after", "blocks", "parameters", "inputs"]
)
"""What no value may be called."""
EXTRA = "parameters: States = (), inputs: States = ()"


def functions(program: Program) -> str:
    """The cell's functions and its contract."""
    parts = [_step(program), _step_backward(program)]
    parts += [_d_states(program)] if contract.passes_states_on(program) else []
    parts += [_outside(program)] if program.d_outside else []
    return "\n\n\n".join([*parts, contract.literal(program)])


def module(programs: Sequence[Program], about: str) -> str:
    """A module of functions for each program, and `CELLS`, which maps names to contracts."""
    text = "\n\n\n".join(functions(program) for program in programs)
    imports = ["from __future__ import annotations", "", "import torch", "from torch import Tensor", ""]
    imports += ["from fastrnn.cells import functions"] if "functions." in text else []
    imports += ["from fastrnn.cells.contract import Cell, States"]
    table = ", ".join(f'"{program.name}": {program.name.upper()}' for program in programs)
    return "\n".join([f'"""{about}"""', "", *imports, "", "", text, "", f"CELLS = {{{table}}}", ""])


def _step(p: Program) -> str:
    x_gates, u_gates = p.shares("x"), p.shares("u")
    lines = []
    added = [f"a_{gate}" for gate in p.gates if leaf("pre", gate) in p.blocks]
    if len(added) == len(p.gates):
        lines += [f"{tuple_of(added, True)} = (gx + gh).unbind(-2)"]
    else:
        lines += [f"{tuple_of([f'x_{gate}' for gate in x_gates], True)} = gx.unbind(-2)"]
        lines += [f"{tuple_of([f'u_{gate}' for gate in u_gates], True)} = gh.unbind(-2)"] if u_gates else []
        lines += [f"{name} = {name.replace('a_', 'x_', 1)} + {name.replace('a_', 'u_', 1)}" for name in added]
    outputs = [*p.after, *p.saved.values()]
    leaves = _variables(outputs)
    lines += unpacked(p, leaves)
    names = {**p.names, **{e: name for name, e in p.saved.items() if not e.is_leaf}}
    write = Writer(LANGUAGE, leaves, names, outputs, TAKEN)
    after, saved = ([_tensor(write, e, "before[0]") for e in group] for group in (p.after, p.saved.values()))
    return _function(
        f"{p.name}_step(gx: Tensor, gh: Tensor, before: States, {EXTRA}) -> tuple[States, States]",
        [*lines, *write.lines],
        _returned([tuple_of(after), tuple_of(saved)]),
    )


def _step_backward(p: Program) -> str:
    return _derivative(p, "step_backward", "d_after", [p.d_blocks, p.d_before], "tuple[States, States]")


def _d_states(p: Program) -> str:
    return _derivative(p, "d_states", "d_after", [p.d_after], "States")


def _outside(p: Program) -> str:
    return _derivative(p, "gradients_outside", "blocks", [tuple(p.d_outside.values())], "States")


def _derivative(p: Program, name: str, first: str, groups: Sequence[Sequence[Expression]], result: str) -> str:
    outputs = [e for group in groups for e in group]
    leaves = _variables(outputs)
    write = Writer(LANGUAGE, leaves, p.d_names, outputs, TAKEN)
    returned = [tuple_of([_tensor(write, e, f"{first}[0]") for e in group]) for group in groups]
    return _function(
        f"{p.name}_{name}({first}: States, saved: States, before: States, after: States, {EXTRA}) -> {result}",
        [*unpacked(p, leaves), *write.lines],
        _returned(returned),
    )


def _variables(outputs: Sequence[Expression]) -> dict[Expression, str]:
    return variables((e for e in below(outputs) if e.is_leaf), TAKEN)


def _tensor(write: Writer, e: Expression, like: str) -> str:
    """An output: a tensor (..., H) even where it is a number, or follows from parameters alone."""
    if e.op == "constant":
        return f"torch.zeros_like({like})" if e is ZERO else f"torch.full_like({like}, {write.text(e)})"
    if {of.op for of in below([e]) if of.is_leaf} == {"parameter"}:
        return f"{write.text(e, ATOM)}.expand_as({like})"
    return write.text(e)


def _returned(tuples: Sequence[str]) -> str:
    return f"return {', '.join(tuples)}"


def _function(signature: str, lines: Sequence[str], returned: str) -> str:
    head = f"def {signature}:"
    if len(head) > WIDTH:
        name, rest = signature.split("(", 1)
        arguments, result = rest.rsplit(") -> ", 1)
        head = f"def {name}(\n    {arguments}\n) -> {result}:"
    return "\n".join([head, *(f"    {line}" for line in (*lines, returned))])
