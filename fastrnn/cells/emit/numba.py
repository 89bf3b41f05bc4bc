"""A program as functions over one vector of units, for Numba: what its kernels compute with.

Every value that a function looks at is loaded first. So a place that is replaced, such as a state's, is read before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from fastrnn.cells.compiler.expression import ZERO, Expression, below, leaf, replaced
from fastrnn.cells.compiler.names import free, variable, variables
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.passes import passes
from fastrnn.cells.emit.writer import ATOM, WIDTH, Form, Language, Writer

KERNELS = "fastrnn.backends.numba.kernels"
IMPORTED = {
    "activations": ("sigmoid", "tanh"),
    "cell_kernel": ("CellKernel", "DerivativeAt", "StepAt"),
    "functions": ("exp", "log", "maximum", "minimum", "softplus", "squared_distance"),
    "inner": ("forced",),
    "simd": (
        *("at_least", "fma", "lanes", "load", "load_some", "magnitude"),
        *("sqrt", "store", "store_some", "where_le", "where_lt"),
    ),
    "sums": ("first_of", "total"),
}
"""What the functions call, by its module."""
TAKEN = frozenset(["like", "at", "some", "dh", "inf", *(name for group in IMPORTED.values() for name in group)])
"""What no value may be called."""
TAKEN_IN_ROWS = TAKEN | {"places", "finish", "row", "unit", "units", "kept", "range"}


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
        **{name: Form(f"{name}({{0}}, {{1}})") for name in ("maximum", "minimum", "squared_distance")},
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
    if p.over_units:
        counts |= {"step_kept": _kept(_step_outputs(p)), "derivative_kept": _kept(_derivative_outputs(p))}
    values = [f"{p.name}_step", f"{p.name}_derivative", *(f"{name}={value}" for name, value in counts.items())]
    values += ["over_units=True"] if p.over_units else []
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

    def stored(write: Writer) -> list[str]:
        lines = [f"store(at.others, {_times(k, 'at.others_apart')}, {_vector(write, e)})" for k, e in _others(p.after)]
        saved = [
            f"    store_some(at.saved, {_times(k, 'at.block')}, {_vector(write, e)}, some)"
            for k, e in enumerate(p.saved.values())
        ]
        return [*lines, *(["if at.saved != 0:", *saved] if saved else [])]

    if p.over_units:
        return _over_rows(p, "step", loads, {}, p.names, _step_outputs(p), stored)
    lines, write = _written(p, loads, {}, p.names, _step_outputs(p))
    ends = [*stored(write), f"return {_vector(write, p.after[0])}"]
    return _function(f"{p.name}_step(like: Any, at: StepAt, some: int)", [*lines, *write.lines, *ends])


def _step_outputs(p: Program) -> list[Expression]:
    """The first is h."""
    return [*p.after, *p.saved.values()]


def _derivative(p: Program) -> str:
    h = p.states[0]
    loads = _in_memory("saved", p.saved, "saved")
    for kind in ("before", "after"):
        loads[leaf(kind, h)] = f"load_some(like, at.h_{kind}, 0, some)"
        loads |= _in_memory(kind, p.states[1:], f"others_{kind}", f"{kind}_apart")
    loads |= _in_scratch("arriving", p.states[1:], "d_others", "d_apart")
    arguments = {leaf("arriving", h): "dh"}

    def stored(write: Writer) -> list[str]:
        lines = [f"store(at.d_others, {_times(k, 'at.d_apart')}, {_vector(write, e)})" for k, e in _others(p.d_before)]
        lines += [
            f"store_some(at.blocks, {_times(k, 'at.block')}, {_vector(write, e)}, some)"
            for k, e in enumerate(p.d_blocks)
        ]
        for k, e in enumerate(_d_parameters(p)):
            place = f"at.d_parameters, {_times(k, 'at.d_parameters_apart')}"
            lines.append(f"store({place}, load(like, {place}) + {write.text(e, ATOM)})")
        return lines

    if p.over_units:
        return _over_rows(p, "derivative", loads, arguments, p.d_names, _derivative_outputs(p), stored)
    lines, write = _written(p, loads, arguments, p.d_names, _derivative_outputs(p))
    ends = [*stored(write), f"return {_vector(write, p.d_before[0])}"]
    signature = f"{p.name}_derivative(like: Any, dh: Any, at: DerivativeAt, some: int)"
    return _function(signature, [*lines, *write.lines, *ends])


def _derivative_outputs(p: Program) -> list[Expression]:
    """The first is the gradient of h."""
    return [*p.d_before, *p.d_blocks, *_d_parameters(p)]


def _kept(outputs: Sequence[Expression]) -> int:
    """How many values passes keep for later ones."""
    return sum(len(one.kept) for one in passes(outputs))


def _over_rows(
    p: Program,
    what: str,
    loads: Mapping[Expression, str],
    arguments: Mapping[Expression, str],
    names: Mapping[Expression, str],
    outputs: Sequence[Expression],
    stored: Callable[[Writer], list[str]],
) -> str:
    """A function over all units of a row, a pass after the other; `stored` writes what the last one stores."""
    walked = passes(outputs)
    kept = [e for one in walked for e in one.kept]
    at_kept = {e: f"kept, unit * {len(kept)} + {_times(k, 'lanes(like)')}" for k, e in enumerate(kept)}
    taken = TAKEN_IN_ROWS | {variable(e) for e in loads}
    known: dict[Expression, str] = {}  # what all units share, in variables that live from pass to pass
    lines: list[str] = []
    means = 0
    for one in walked:
        numbers = range(means, means := means + len(one.means))
        sums = [free(f"sum{number}", taken) for number in numbers]
        again = {e: free(f"kept{kept.index(e)}", taken) for e in one.loaded}
        reserved = {*TAKEN_IN_ROWS, *sums, *again.values(), *known.values()}
        asked = [*one.outputs, *one.kept]
        read, write = _written(p, loads, {**arguments, **known, **again}, names, asked, reserved)
        if one.means:
            ends = [
                f"{so_far} = {so_far} + first_of({_vector(write, e)}, some)"
                for so_far, e in zip(sums, one.outputs, strict=True)
            ]
        else:
            ends = [*stored(write), f"finish(row, like, unit, at, {_vector(write, outputs[0])})"]
        ends += [f"store({at_kept[e]}, {write.text(e)})" for e in one.kept]
        begins = ["dh, at = places(row, like, unit)" if arguments else "at = places(row, like, unit)"]
        begins += ["some = units - unit", *(f"{again[e]} = load(like, {at_kept[e]})" for e in one.loaded)]
        lines += [f"{so_far} = like" for so_far in sums]
        lines += ["for unit in range(0, units, lanes(like)):"]
        lines += [f"    {line}" for line in (*begins, *read, *write.lines, *ends)]
        for number, mean, so_far in zip(numbers, one.means, sums, strict=True):
            known[mean] = free(f"mean{number}", taken)
            lines.append(f"{known[mean]} = total({so_far}) / units")
        uniform = Writer(LANGUAGE, known, {}, one.uniform, {*taken, *known.values()})
        known |= {e: uniform.variable(e) for e in one.uniform}
        lines += uniform.lines
    return _function(f"{p.name}_{what}(like: Any, places: Any, finish: Any, row: Any, units: int, kept: int)", lines)


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
    reserved: Collection[str] = (),
) -> tuple[list[str], Writer]:
    """The lines that load what is looked at, each value into a variable of its own, and what writes the rest."""
    loads = {
        **loads,
        **_in_memory("parameter", p.parameters, "parameters"),
        **_in_memory("input", p.inputs, "inputs"),
    }
    taken = {*TAKEN, *reserved}
    used = set(below(outputs, arguments.keys()))
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
