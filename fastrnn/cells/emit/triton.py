"""A program as functions that Triton compiles, over tuples of tiles: what its kernels are handed.

A cell is three functions. `preactivations(gx, gh)` gives those blocks that gates have, of the shares of the gates.
`step(pre, before, parameters, inputs, APPROXIMATE)` gives the states after the step and what it saves;
`derivative(d_after, saved, before, after, parameters, inputs, APPROXIMATE)` the blocks' gradients and those that reach
the states before the step directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from fastrnn.cells.compiler.expression import ZERO, Expression
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.tuples import arguments, body, chosen
from fastrnn.cells.emit.writer import ATOM, Form, Language, Writer, sum_of_shares, tuple_of

FUNCTIONS = ("preactivations", "step", "derivative")
"""Of a cell, in the order of `fastrnn.backends.triton.kernels.functions.Functions`."""
_APPROXIMATED = ("sigmoid", "tanh", "exp", "log", "softplus")
_EXACT = ("relu", "sqrt", "maximum", "minimum")
KERNELS = "fastrnn.backends.triton.kernels"

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


def module(programs: Sequence[Program], about: str) -> str:
    """A module of functions for each program, and `FUNCTIONS`, which maps names to them."""
    text = "\n\n\n".join(f(p) for p in programs for f in (_preactivations, _step, _derivative))
    used = ", ".join(sorted(name for name in (*_APPROXIMATED, *_EXACT) if f"{name}(" in text))
    imports = ["from __future__ import annotations", "", "import triton", "import triton.language as tl", ""]
    imports += [f"from {KERNELS}.activations import {used}"] if used else []
    imports += [f"from {KERNELS}.functions import Functions"]
    rows = [f'    "{p.name}": Functions({", ".join(f"{p.name}_{name}" for name in FUNCTIONS)}),' for p in programs]
    return "\n".join([f'"""{about}"""', "", *imports, "", "", text, "", "", "FUNCTIONS = {", *rows, "}", ""])


def _preactivations(p: Program) -> str:
    sums = [sum_of_shares(p, block) for block in p.preactivations]
    return _function(f"{p.name}_preactivations(gx, gh)", [f"return {tuple_of(sums)}"])


def _step(p: Program) -> str:
    given = {"pre": p.preactivations, **arguments(p)}
    lines = body(LANGUAGE, _TAKEN, given, p.names, [p.after, [*p.saved.values()]], _tile, "before[0]")
    return _function(f"{p.name}_step(pre, before, parameters, inputs, APPROXIMATE: tl.constexpr)", lines)


def _derivative(p: Program) -> str:
    lines = body(LANGUAGE, _TAKEN, arguments(p), p.d_names, [p.d_blocks, p.d_before], _tile, "d_after[0]")
    signature = f"{p.name}_derivative(d_after, saved, before, after, parameters, inputs, APPROXIMATE: tl.constexpr)"
    return _function(signature, lines)


def _tile(write: Writer, e: Expression, like: str) -> str:
    """An output: a tile even where it is a number."""
    zeros = f"tl.zeros_like({like})"
    return write.text(e) if e.op != "constant" else zeros if e is ZERO else f"{zeros} + {write.text(e)}"


def _function(signature: str, lines: Sequence[str]) -> str:
    return "\n".join(["@triton.jit", f"def {signature}:", *(f"    {line}" for line in lines)])
