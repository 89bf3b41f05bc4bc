"""A program as functions that Triton compiles, over tuples of tiles: what its kernels are handed.

A cell is three functions. `preactivations(gx, gh)` gives those blocks that gates have, of the shares of the gates.
`step(pre, before, parameters, inputs, unit, D, APPROXIMATE)` gives the states after the step and what it saves;
`derivative(d_after, saved, before, after, parameters, inputs, unit, D, APPROXIMATE)` the blocks' gradients and those
that reach the states before the step directly. `unit`, which units a tile holds, and D, how many there are, are what
means over units look at; then a tile holds all of them.

One without a product of the state has two more, as far as they are linear (`fastrnn.cells.compiler.linearity`):
`linear_step(pre, parameters, inputs, APPROXIMATE)` gives the factors that are not zero, row by row, and the rests;
`linear_derivative(saved, before, after, parameters, inputs, APPROXIMATE)` the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from fastrnn.cells.compiler import linearity
from fastrnn.cells.compiler.expression import ZERO, Expression
from fastrnn.cells.compiler.linearity import Linear
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.tuples import arguments, body, chosen
from fastrnn.cells.emit.writer import ATOM, WIDTH, Form, Language, Writer, sum_of_shares, tuple_of

FUNCTIONS = ("preactivations", "step", "derivative")
"""That every cell has, in the order of `fastrnn.backends.triton.kernels.functions.Functions`."""
_APPROXIMATED = ("sigmoid", "tanh", "exp", "log", "softplus")
_EXACT = ("relu", "sqrt", "maximum", "minimum", "squared_distance")
KERNELS = "fastrnn.backends.triton.kernels"


def _special(write: Writer, e: Expression) -> str | None:
    if e.op != "mean":
        return chosen(write, e, "tl.where({a} {sign} {b}, tl.zeros_like({typed}) + {then}, {otherwise})")
    phases = _phases(write.made_of)
    together = [other for other in write.made_of if other.op == "mean" and phases[other] == phases[e]]
    values = tuple_of([write.text(other.args[0]) for other in together])
    write.assign_together(together, f"means({values}, unit, D)")
    return write.text(e)


def _phases(made_of: Sequence[Expression]) -> dict[Expression, int]:
    """How many means are in one another, at most, in each of these: those of one phase wait for none of each other."""
    phases: dict[Expression, int] = {}
    for e in made_of:
        phases[e] = (e.op == "mean") + max((phases.get(a, 0) for a in e.args), default=0)
    return phases


LANGUAGE = Language(
    operations={
        **{name: Form(f"{name}({{0}}, APPROXIMATE)") for name in _APPROXIMATED},
        **{name: Form(f"{name}({{0}})") for name in ("relu", "sqrt")},
        **{name: Form(f"{name}({{0}}, {{1}})") for name in ("maximum", "minimum", "squared_distance")},
        "abs": Form("tl.abs({0})"),
        "neg": Form("-{0}", 1, (3,)),
        "where_le": Form("tl.where({0} <= {1}, {2}, {3})"),
        "where_lt": Form("tl.where({0} < {1}, {2}, {3})"),
        "mix": Form("{2} + {0} * ({1} - {2})", 1, (2, 1, ATOM)),
        "stop_gradient": Form("{0}", needs=(ATOM,)),
    },
    constant=lambda value: repr(value) if isfinite(value) else f'float("{value}")',
    special=_special,
)
_ARGUMENTS = ("pre", "before", "after", "saved", "d_after", "parameters", "inputs", "unit", "D", "APPROXIMATE")
_TAKEN = ("tl", "float", "means", *_APPROXIMATED, *_EXACT, *_ARGUMENTS)
_UNITS = "unit, D: tl.constexpr, APPROXIMATE: tl.constexpr"


def module(programs: Sequence[Program], about: str) -> str:
    """A module of functions for each program, and `FUNCTIONS`, which maps names to them."""
    functions = {p.name: _functions(p) for p in programs}
    text = "\n\n\n".join(text for of_cell in functions.values() for text in of_cell.values())
    used = ", ".join(sorted(name for name in (*_APPROXIMATED, *_EXACT) if f"{name}(" in text))
    imports = ["from __future__ import annotations", "", "import triton", "import triton.language as tl", ""]
    imports += [f"from {KERNELS}.activations import {used}"] if used else []
    imports += [f"from {KERNELS}.functions import Functions"]
    imports += [f"from {KERNELS}.means import means"] if "means(" in text else []
    rows = [
        f'    "{cell}": Functions({", ".join(name if end in FUNCTIONS else f"{end}={name}" for end, name in names)}),'
        for cell, of_cell in functions.items()
        for names in [[(end, f"{cell}_{end}") for end in of_cell]]
    ]
    return "\n".join([f'"""{about}"""', "", *imports, "", "", text, "", "", "FUNCTIONS = {", *rows, "}", ""])


def _functions(p: Program) -> dict[str, str]:
    """Their texts, by what follows the cell's name in theirs."""
    found = {"preactivations": _preactivations(p), "step": _step(p), "derivative": _derivative(p)}
    step, derivative = linearity.forward(p), linearity.backward(p)
    if step is not None and step.states:
        found["linear_step"] = _linear_step(p, step)
    if derivative is not None:
        found["linear_derivative"] = _linear_derivative(p, derivative)
    return found


def _preactivations(p: Program) -> str:
    sums = [sum_of_shares(p, block) for block in p.preactivations]
    return _function(f"{p.name}_preactivations(gx, gh)", [f"return {tuple_of(sums)}"])


def _step(p: Program) -> str:
    given = {"pre": p.preactivations, **arguments(p)}
    lines = body(LANGUAGE, _TAKEN, given, p.names, [p.after, [*p.saved.values()]], _tile, "before[0]")
    return _function(f"{p.name}_step(pre, before, parameters, inputs, {_UNITS})", lines)


def _derivative(p: Program) -> str:
    lines = body(LANGUAGE, _TAKEN, arguments(p), p.d_names, [p.d_blocks, p.d_before], _tile, "d_after[0]")
    signature = f"{p.name}_derivative(d_after, saved, before, after, parameters, inputs, {_UNITS})"
    return _function(signature, lines)


def _linear_step(p: Program, step: Linear) -> str:
    given = {"pre": p.preactivations, **arguments(p)}
    lines = body(LANGUAGE, _TAKEN, given, p.names, [_factors(step), step.rest], _tile, "pre[0]")
    return _function(f"{p.name}_linear_step(pre, parameters, inputs, APPROXIMATE: tl.constexpr)", lines)


def _linear_derivative(p: Program, derivative: Linear) -> str:
    lines = body(LANGUAGE, _TAKEN, arguments(p), p.d_names, [_factors(derivative)], _tile, "before[0]")
    signature = f"{p.name}_linear_derivative(saved, before, after, parameters, inputs, APPROXIMATE: tl.constexpr)"
    return _function(signature, lines)


def _factors(linear: Linear) -> list[Expression]:
    return [linear.factors[i][j] for i, j in linear.entries]


def _tile(write: Writer, e: Expression, like: str) -> str:
    """An output: a tile of all units even where it is a number, or a mean."""
    zeros = f"tl.zeros_like({like})"
    return write.text(e) if not e.is_uniform else zeros if e is ZERO else f"{zeros} + {write.text(e, 2)}"


def _function(signature: str, lines: Sequence[str]) -> str:
    head = f"def {signature}:"
    if len(head) > WIDTH:
        name, given = signature.removesuffix(")").split("(", 1)
        head = f"def {name}(\n    {given}\n):"
    return "\n".join(["@triton.jit", head, *(f"    {line}" for line in lines)])
