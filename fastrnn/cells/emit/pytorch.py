"""A program as plain PyTorch, over tensors (..., H): what the reference computes with, and its contract.

It is made of differentiable operations only, so that autograd can go through the step to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from fastrnn.cells.compiler.expression import ZERO, Expression, below
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit import contract
from fastrnn.cells.emit.tuples import Values, arguments, body, chosen
from fastrnn.cells.emit.writer import ATOM, WIDTH, Form, Language, Writer, tuple_of

LANGUAGE = Language(
    operations={
        **{name: Form(f"torch.{name}({{0}})") for name in ("sigmoid", "tanh", "relu", "exp", "log", "sqrt", "abs")},
        **{name: Form(f"functions.{name}({{0}}, {{1}})") for name in ("maximum", "minimum")},
        **{name: Form(f"functions.{name}({{0}})") for name in ("softplus", "mean")},
        "squared_distance": Form("({0} - {1}).square()", needs=(1, 2)),
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


def module(programs: Sequence[Program], about: str) -> str:
    """A module of functions for each program, and `CELLS`, which maps names to contracts."""
    text = "\n\n\n".join(map(_functions, programs))
    imports = ["from __future__ import annotations", "", "import torch", "from torch import Tensor", ""]
    imports += ["from fastrnn.cells import functions"] if "functions." in text else []
    imports += ["from fastrnn.cells.contract import Cell, States"]
    table = ", ".join(f'"{program.name}": {program.name.upper()}' for program in programs)
    return "\n".join([f'"""{about}"""', "", *imports, "", "", text, "", f"CELLS = {{{table}}}", ""])


def _functions(p: Program) -> str:
    """The cell's functions and its contract."""
    parts = [_step(p), _derivative(p, "step_backward", "d_after", p.d_blocks, p.d_before)]
    parts += [_derivative(p, "d_states", "d_after", p.d_after)] if contract.passes_states_on(p) else []
    parts += [_derivative(p, "gradients_outside", "blocks", [*p.d_outside.values()])] if p.d_outside else []
    return "\n\n\n".join([*parts, contract.literal(p)])


def _step(p: Program) -> str:
    if len(p.added) == len(p.gates):
        lines = [_unbound("a", p.added, "(gx + gh)")]
    else:
        lines = [_unbound("x", p.shares("x"), "gx")]
        lines += [_unbound("u", p.shares("u"), "gh")] if p.shares("u") else []
        lines += [f"a_{gate} = x_{gate} + u_{gate}" for gate in p.added]
    lines += body(LANGUAGE, TAKEN, arguments(p), p.names, [p.after, [*p.saved.values()]], _tensor, "before[0]")
    return _function(f"{p.name}_step(gx: Tensor, gh: Tensor, before: States, {EXTRA}) -> tuple[States, States]", lines)


def _unbound(share: str, gates: Sequence[str], tensor: str) -> str:
    return f"{tuple_of([f'{share}_{gate}' for gate in gates], True)} = {tensor}.unbind(-2)"


def _derivative(p: Program, name: str, first: str, *results: Values) -> str:
    lines = body(LANGUAGE, TAKEN, arguments(p), p.d_names, results, _tensor, f"{first}[0]")
    returns = "States" if len(results) == 1 else "tuple[States, States]"
    return _function(
        f"{p.name}_{name}({first}: States, saved: States, before: States, after: States, {EXTRA}) -> {returns}", lines
    )


def _tensor(write: Writer, e: Expression, like: str) -> str:
    """An output: a tensor (..., H) even where it is a number, or follows from parameters alone."""
    if e.op == "constant":
        return f"torch.zeros_like({like})" if e is ZERO else f"torch.full_like({like}, {write.text(e)})"
    if {of.op for of in below([e]) if of.is_leaf} == {"parameter"}:
        return f"{write.text(e, ATOM)}.expand_as({like})"
    return write.text(e)


def _function(signature: str, lines: Sequence[str]) -> str:
    head = f"def {signature}:"
    if len(head) > WIDTH:
        name, rest = signature.split("(", 1)
        given, result = rest.rsplit(") -> ", 1)
        head = f"def {name}(\n    {given}\n) -> {result}:"
    return "\n".join([head, *(f"    {line}" for line in lines)])
