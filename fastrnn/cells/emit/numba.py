"""A program as functions over one vector of units, for Numba: what its kernels compute with.

Every value that a function looks at is loaded first. So a place that is replaced, such as a state's, is read before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fastrnn.cells.compiler.expression import ZERO, Expression, below, leaf, replaced
from fastrnn.cells.compiler.names import variable, variables
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.writer import ATOM, WIDTH, Form, Language, Writer

KERNELS = "fastrnn.backends.numba.kernels"
IMPORTED = {
    "activations": ("forced", "sigmoid", "tanh"),
    "cell_kernel": ("CellKernel", "DerivativeAt", "StepAt"),
    "functions": ("exp", "log", "maximum", "minimum", "softplus"),
    "simd": (
        *("at_least", "fma", "lanes", "load", "load_some", "magnitude"),
        *("sqrt", "store", "store_some", "where_le", "where_lt"),
    ),
}
"""What the functions call, by its module."""


def _fused(write: Writer, e: Expression) -> str | None:
    """A sum with a product, rounded once."""
    if e.op != "add":
        return None
    a, b = e.args
    if not _is_product(write, a):
        a, b = b, a
    if not _is_product(write, a):
        return None
    return f"fma({write.text(a.args[0])}, {write.text(a.args[1])}, {write.text(b)})"


def _is_product(write: Writer, e: Expression) -> bool:
    return e.op == "multiply" and write.stays_inside(e)


LANGUAGE = Language(
    operations={
        **{name: Form(f"{name}({{0}})") for name in ("sigmoid", "tanh", "exp", "log", "softplus", "sqrt")},
        **{name: Form(f"{name}({{0}}, {{1}})") for name in ("maximum", "minimum")},
        **{name: Form(f"{name}({{0}}, {{1}}, {{2}}, {{3}})") for name in ("where_le", "where_lt")},
        "relu": Form("at_least({0}, 0.0)"),
        "abs": Form("magnitude({0})"),
        "neg": Form("-{0}", 1, (3,)),
        "mix": Form("fma({0}, {1}, (1.0 - {0}) * {2})", needs=(0, 0, 3)),
        "stop_gradient": Form("{0}", needs=(ATOM,)),
    },
    constant=repr,
    special=_fused,
)


def module(programs: Sequence[Program], about: str) -> str:
    """A module of functions for each program, which are called as `kernels/cell_kernel.py` says, and `CELL_KERNELS`,
    which maps names to what the kernels around know."""
    table = "\n".join(["CELL_KERNELS = {", *map(_facts, programs), "}"])
    text = "\n\n\n".join([*(f(p) for p in programs for f in (_step, _derivative)), table])
    used = set(re.findall(r"\w+", text))
    called = {name: [one for one in group if one in used] for name, group in IMPORTED.items()}
    lines = ["from __future__ import annotations", ""]
    lines += ["from math import inf"] if "inf" in used else []
    lines += ["from typing import Any", ""]
    lines += [_import(name, group) for name, group in called.items() if group]
    return "\n".join([f'"""{about}"""', "", *lines, "", "", text, ""])


def _import(name: str, called: Sequence[str]) -> str:
    line = f"from {KERNELS}.{name} import {', '.join(called)}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"from {KERNELS}.{name} import (", *(f"    {one}," for one in called), ")"])


def _facts(p: Program) -> str:
    counts = {
        "x_gates": len(p.shares("x")),
        "u_gates": len(p.shares("u")),
        "states": len(p.states),
        "parameters": len(p.parameters),
        "inputs": len(p.inputs),
        "blocks": len(p.blocks),
        "saved": len(p.saved),
    }
    values = [f"{p.name}_step", f"{p.name}_derivative", *(f"{name}={value}" for name, value in counts.items())]
    return "\n".join([f'    "{p.name}": CellKernel(', *(f"        {value}," for value in values), "    ),"])


def _step(p: Program) -> str:
    shares = {}
    for kind, place in (("x", "gx"), ("u", "gh")):
        for number, gate in enumerate(p.shares(kind)):
            shares[kind, gate] = f"load(like, at.{place}, {_times(number, 'lanes(like)')})"
    loads = {e: shares[key] for key in shares if (e := leaf(*key)) in p.blocks}
    loads |= {leaf("pre", gate): f"{shares['x', gate]} + {shares['u', gate]}" for gate in p.added}
    loads[leaf("before", p.states[0])] = "load(like, at.h, 0)"
    loads |= _in_scratch("before", p.states[1:], "others", "others_apart")
    outputs = [*p.after, *p.saved.values()]
    lines, write = _written(p, loads, {}, p.names, outputs)
    stored = [f"store(at.others, {_times(k, 'at.others_apart')}, {_vector(write, e)})" for k, e in _others(p.after)]
    saved = [
        f"    store_some(at.saved, {_times(k, 'at.block')}, {_vector(write, e)}, some)"
        for k, e in enumerate(p.saved.values())
    ]
    returned = f"return {_vector(write, p.after[0])}"
    saved = ["if at.saved != 0:", *saved] if saved else []
    signature = f"{p.name}_step(like: Any, at: StepAt, some: int)"
    return _function(signature, [*lines, *write.lines, *stored, *saved, returned])


def _derivative(p: Program) -> str:
    h = p.states[0]
    loads = _in_memory("saved", p.saved, "saved")
    for kind in ("before", "after"):
        loads[leaf(kind, h)] = f"load_some(like, at.h_{kind}, 0, some)"
        loads |= _in_memory(kind, p.states[1:], f"others_{kind}", f"{kind}_apart")
    loads |= _in_scratch("arriving", p.states[1:], "d_others", "d_apart")
    d_parameters = _d_parameters(p)
    outputs = [*p.d_blocks, *p.d_before, *d_parameters]
    lines, write = _written(p, loads, {leaf("arriving", h): "dh"}, p.d_names, outputs)
    stored = [f"store(at.d_others, {_times(k, 'at.d_apart')}, {_vector(write, e)})" for k, e in _others(p.d_before)]
    stored += [
        f"store_some(at.blocks, {_times(k, 'at.block')}, {_vector(write, e)}, some)" for k, e in enumerate(p.d_blocks)
    ]
    for k, e in enumerate(d_parameters):
        place = f"at.d_parameters, {_times(k, 'at.d_parameters_apart')}"
        stored.append(f"store({place}, load(like, {place}) + {write.text(e, ATOM)})")
    returned = f"return {_vector(write, p.d_before[0])}"
    signature = f"{p.name}_derivative(like: Any, dh: Any, at: DerivativeAt, some: int)"
    return _function(signature, [*lines, *write.lines, *stored, returned])


def _d_parameters(p: Program) -> list[Expression]:
    """What a step adds to the gradient of each parameter."""
    known = {leaf("block", variable(block)): d for block, d in zip(p.blocks, p.d_blocks, strict=True)}
    parameters = [leaf("parameter", name) for name in p.parameters]
    found = {**p.d_outside, **dict(zip(p.blocks, p.d_blocks, strict=True))}
    return replaced([found[e] for e in parameters], known)


def _others(states: Sequence[Expression]) -> list[tuple[int, Expression]]:
    return list(enumerate(states[1:]))


def _in_scratch(kind: str, names: Sequence[str], place: str, apart: str) -> dict[Expression, str]:
    return {leaf(kind, name): f"load(like, at.{place}, {_times(k, f'at.{apart}')})" for k, name in enumerate(names)}


def _in_memory(kind: str, names: Iterable[str], place: str, apart: str = "block") -> dict[Expression, str]:
    return {
        leaf(kind, name): f"load_some(like, at.{place}, {_times(k, f'at.{apart}')}, some)"
        for k, name in enumerate(names)
    }


def _times(number: int, distance: str) -> str:
    return ("0", distance)[number] if number < 2 else f"{number} * {distance}"


def _written(
    p: Program,
    loads: Mapping[Expression, str],
    arguments: Mapping[Expression, str],
    names: Mapping[Expression, str],
    outputs: Sequence[Expression],
) -> tuple[list[str], Writer]:
    """The lines that load what is looked at, each value into a variable of its own, and what writes the rest."""
    loads = {
        **loads,
        **_in_memory("parameter", p.parameters, "parameters"),
        **_in_memory("input", p.inputs, "inputs"),
    }
    taken = {"like", "at", "some", "dh", "inf", *(name for group in IMPORTED.values() for name in group)}
    used = set(below(outputs))
    leaves = variables((e for e in loads if e in used), taken)
    lines = [f"{leaves[e]} = {load}" for e, load in loads.items() if e in used]
    return lines, Writer(LANGUAGE, {**leaves, **arguments}, names, outputs, taken)


def _vector(write: Writer, e: Expression) -> str:
    """An output: a vector even where it is a number. `like` is zero."""
    if e.op != "constant":
        return write.text(e)
    return "like" if e is ZERO else f"like + {write.text(e)}"


def _function(signature: str, lines: Sequence[str]) -> str:
    return "\n".join(["@forced", f"def {signature} -> Any:", *(f"    {line}" for line in lines)])
