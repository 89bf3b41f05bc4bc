"""A program as functions that Triton compiles, over tuples of tiles: what its kernels are handed.

A cell is three functions. `preactivations(gx, gh)` gives those blocks that gates have, of the shares of the gates.
`step(pre, before, parameters, inputs, APPROXIMATE)` gives the states after the step and what it saves;
`derivative(d_after, saved, before, after, parameters, inputs, APPROXIMATE)` the blocks' gradients and those that reach
the states before the step directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from fastrnn.cells.compiler.expression import ZERO, Expression, below
from fastrnn.cells.compiler.names import variables
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.arguments import from_tuple, unpacked
from fastrnn.cells.emit.numbers import chosen
from fastrnn.cells.emit.writer import ATOM, Form, Language, Writer, tuple_of

FUNCTIONS = ("preactivations", "step", "derivative")
"""Of a cell, in the order of `fastrnn.backends.triton.kernels.functions.Functions`."""
_APPROXIMATED = ("sigmoid", "tanh", "exp", "log", "softplus")
_EXACT = ("relu", "sqrt", "maximum", "minimum")
ACTIVATIONS = "fastrnn.backends.triton.kernels.activations"

LANGUAGE = Language(
    operations={
        **{name: Form(f"{name}({{0}}, APPROXIMATE)") for name in _APPROXIMATED},
        **{name: Form(f"{name}({{0}})") for name in ("relu", "sqrt")},
        **{name: Form(f"{name}({{0}}, {{1}})") for name in ("maximum", "minimum")},
        "abs": Form("tl.abs({0})"),
        "neg": Form("-{0}", 1, (3,)),
        "where_le": Form("tl.where({0} <= {1}, {2}, {3})"),
        "where_lt": Form("tl.where({0} < {1}, {2}, {3})"),
        "mix": Form("{2} + {0} * ({1} - {2})", 1, (2, 1, ATOM)),
        "stop_gradient": Form("{0}", needs=(ATOM,)),
    },
    constant=lambda value: repr(value) if isfinite(value) else f'float("{value}")',
    special=lambda write, e: chosen(write, e, "tl.where({a} {sign} {b}, tl.zeros_like({typed}) + {then}, {otherwise})"),
)
_ARGUMENTS = ("pre", "before", "after", "saved", "d_after", "parameters", "inputs", "APPROXIMATE")
_TAKEN = ("tl", "float", *_APPROXIMATED, *_EXACT, *_ARGUMENTS)


def functions(p: Program) -> str:
    """The cell's functions, each under `triton.jit`."""
    return "\n\n\n".join((_preactivations(p), _step(p), _derivative(p)))


def module(programs: Sequence[Program], about: str) -> str:
    """A module of functions for each program, and `FUNCTIONS`, which maps names to them."""
    text = "\n\n\n".join(functions(p) for p in programs)
    used = ", ".join(sorted(name for name in (*_APPROXIMATED, *_EXACT) if f"{name}(" in text))
    imports = ["from __future__ import annotations", "", "import triton", "import triton.language as tl", ""]
    imports += [f"from {ACTIVATIONS} import {used}"] if used else []
    imports += [f"from {ACTIVATIONS.replace('activations', 'functions')} import Functions"]
    rows = [f'    "{p.name}": Functions({", ".join(f"{p.name}_{name}" for name in FUNCTIONS)}),' for p in programs]
    return "\n".join([f'"""{about}"""', "", *imports, "", "", text, "", "", "FUNCTIONS = {", *rows, "}", ""])


def _preactivations(p: Program) -> str:
    def shares(block: Expression) -> str:
        places = {name: p.shares(kind) for kind, name in (("x", "gx"), ("u", "gh")) if block.op in (kind, "pre")}
        return " + ".join(f"{name}[{gates.index(str(block.value))}]" for name, gates in places.items())

    return _function(f"{p.name}_preactivations(gx, gh)", [], [[shares(block) for block in _of_gates(p)]])


def _of_gates(p: Program) -> list[Expression]:
    return [block for block in p.blocks if block.op in ("x", "pre", "u")]


def _step(p: Program) -> str:
    outputs = [*p.after, *p.saved.values()]
    names = {**p.names, **{e: name for name, e in p.saved.items() if not e.is_leaf}}
    lines = from_tuple("pre", _of_gates(p), _variables(outputs))
    signature = f"{p.name}_step(pre, before, parameters, inputs, APPROXIMATE: tl.constexpr)"
    return _written(p, signature, lines, names, [p.after, list(p.saved.values())], "before[0]")


def _derivative(p: Program) -> str:
    signature = f"{p.name}_derivative(d_after, saved, before, after, parameters, inputs, APPROXIMATE: tl.constexpr)"
    return _written(p, signature, [], p.d_names, [p.d_blocks, p.d_before], "d_after[0]")


def _written(
    p: Program,
    signature: str,
    lines: Sequence[str],
    names: Mapping[Expression, str],
    groups: Sequence[Sequence[Expression]],
    like: str,
) -> str:
    """A function that returns a tuple for each group; `like` is any tile."""
    outputs = [e for group in groups for e in group]
    leaves = _variables(outputs)
    write = Writer(LANGUAGE, leaves, names, outputs, _TAKEN)
    tuples = [[_tile(write, e, like) for e in group] for group in groups]
    return _function(signature, [*lines, *unpacked(p, leaves), *write.lines], tuples)


def _variables(outputs: Sequence[Expression]) -> dict[Expression, str]:
    return variables((e for e in below(outputs) if e.is_leaf), _TAKEN)


def _tile(write: Writer, e: Expression, like: str) -> str:
    """An output: a tile even where it is a number."""
    zeros = f"tl.zeros_like({like})"
    return write.text(e) if e.op != "constant" else zeros if e is ZERO else f"{zeros} + {write.text(e)}"


def _function(signature: str, lines: Sequence[str], tuples: Sequence[Sequence[str]]) -> str:
    returned = f"return {', '.join(map(tuple_of, tuples))}"
    return "\n".join(["@triton.jit", f"def {signature}:", *(f"    {line}" for line in (*lines, returned))])
