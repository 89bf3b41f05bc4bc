"""Which of a cell's gates only ever add their two shares, so that one pre-activation and one gradient serve both."""

from __future__ import annotations

from collections.abc import Sequence

from fastrnn.cells.compiler.expression import ZERO, Expression, add, below, leaf, rebuilt, subtract


def with_added_shares(outputs: Sequence[Expression], gates: Sequence[str]) -> list[Expression]:
    """The outputs with x + u of a gate as one leaf, "pre", wherever that says all that there is of the gate.

    The two shares need not stand side by side: x + p c + u is as well x + u + p c.
    """
    for gate in gates:
        x, u = leaf("x", gate), leaf("u", gate)
        made: dict[Expression, Expression] = {}
        for e in below(outputs):
            args = [made[a] for a in e.args]
            made[e] = _joined(rebuilt(e.op, *args), x, u) if e.args else e
        tried = [made[e] for e in outputs]
        if not {x, u} & set(below(tried)):
            outputs = tried
    return list(outputs)


def _joined(e: Expression, x: Expression, u: Expression) -> Expression:
    """A sum of which both shares are terms, with one leaf in place of x and nothing in place of u."""
    if e.op in ("add", "subtract") and _has_term(e, x) and _has_term(e, u):
        return _with_term(_with_term(e, u, ZERO), x, leaf("pre", str(x.value)))
    return e


def _has_term(e: Expression, term: Expression) -> bool:
    if e.op == "add":
        return any(_has_term(a, term) for a in e.args)
    return e is term or (e.op == "subtract" and _has_term(e.args[0], term))


def _with_term(e: Expression, term: Expression, by: Expression) -> Expression:
    """The sum with another term in place of one that it has."""
    if e is term:
        return by
    if not _has_term(e, term):
        return e
    a, b = e.args
    if e.op == "subtract":
        return subtract(_with_term(a, term, by), b)
    if _has_term(a, term):
        return add(_with_term(a, term, by), b)
    return add(a, _with_term(b, term, by))
