"""A program as equations, to be read.

c₋ is the state c before the step and c' after it; x_i and u_i are a gate's shares, a_i is their sum where they are only
ever added. dy is the gradient of y: dc' what arrives at c' from outside the step, dc all that reaches it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastrnn.cells.compiler.expression import Expression, below
from fastrnn.cells.compiler.names import variable
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.writer import ATOM, Form, Language, Writer

SHORT = 16
"""Columns of what is said twice rather than given a name."""


def _square(write: Writer, e: Expression) -> str | None:
    return f"{write.text(e.args[0], ATOM)}²" if e.op == "multiply" and e.args[0] is e.args[1] else None


LANGUAGE = Language(
    operations={
        **{name: Form(f"{name}({{0}})") for name in ("tanh", "relu", "exp", "log", "softplus", "mean")},
        "sigmoid": Form("σ({0})"),
        "sqrt": Form("√({0})"),
        "abs": Form("|{0}|"),
        "maximum": Form("max({0}, {1})"),
        "minimum": Form("min({0}, {1})"),
        "neg": Form("-{0}", 1, (3,)),
        "where_le": Form("({2} where {0} ≤ {1}, else {3})", needs=(1, 1, 1, 1)),
        "where_lt": Form("({2} where {0} < {1}, else {3})", needs=(1, 1, 1, 1)),
        "mix": Form("{0} * {1} + (1 - {0}) * {2}", 1, (ATOM, 2, 2)),
        "stop_gradient": Form("stop({0})"),
        "squared_distance": Form("({0} - {1})²", needs=(1, 2)),
    },
    constant=lambda value: f"{value:g}".replace("inf", "∞"),
    special=_square,
)
_LEAVES = {"before": "{}₋", "after": "{}'", "arriving": "d{}'"}


class _Equations(Writer):
    def _written(self, e: Expression) -> tuple[str, int]:
        text, strength = self._operation(e)
        if e in self._names or e in self._deep or (self._uses[e] > 1 and len(text) > SHORT):
            return self._assigned(e, text), ATOM
        return text, strength


def step(p: Program) -> list[str]:
    """The states after a step, and the values on the way that have names."""
    after = [(f"{state}'", e) for state, e in zip(p.states, p.after, strict=True)]
    names = {**p.names, **{e: name for name, e in after if e.args}}
    lines = [f"a_k = x_k + u_k    k = {', '.join(p.added)}"] if p.added else []
    return lines + _equations(after, names)


def derivative(p: Program) -> list[str]:
    """The gradients of the blocks, and those that reach the states before a step not through u."""
    blocks = [(f"d{variable(block)}", d) for block, d in zip(p.blocks, p.d_blocks, strict=True)]
    before = [(f"d{state}₋", d) for state, d in zip(p.states, p.d_before, strict=True)]
    return _equations([*blocks, *before], p.d_names)


def outside(p: Program) -> list[str]:
    """The gradients that follow from those of the blocks, after the recurrence."""
    return _equations([(f"d{variable(e)}", d) for e, d in p.d_outside.items()], {})


def _equations(wanted: Sequence[tuple[str, Expression]], names: Mapping[Expression, str]) -> list[str]:
    outputs = [e for _, e in wanted]
    leaves = {e: _leaf(e) for e in below(outputs) if e.is_leaf}
    write = _Equations(LANGUAGE, leaves, names, outputs)
    for name, e in wanted:
        text = write.text(e)
        if text != name:
            write.lines.append(f"{name} = {text}")
    return [line.replace(" * ", " ") for line in write.lines]  # a product needs no sign


def _leaf(e: Expression) -> str:
    return _LEAVES[e.op].format(e.value) if e.op in _LEAVES else variable(e)
