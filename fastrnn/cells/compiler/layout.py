"""Which of a cell's gates only ever add their two shares, so that one pre-activation and one gradient serve both."""

from __future__ import annotations

from collections.abc import Sequence

from fastrnn.cells.compiler.expression import ZERO, Expression, add, below, leaf, negative, rebuilt, subtract

_Signs = dict[tuple[Expression, Expression], int]
"""Those that were found, of a sum and a term: a part of many sums is looked at once."""


def with_added_shares(
    outputs: Sequence[Expression], gates: Sequence[str], others: Sequence[Expression] = ()
) -> list[Expression]:
    """The outputs with x + u of a gate as one leaf, "pre", wherever that says all that there is of the gate.

    The two shares need not stand side by side: x + p c + u is as well x + u + p c. Behind the outputs come the others,
    rewritten likewise. They decide nothing: x + p c may have a name.
    """
    made = {e: e for e in (*outputs, *others)}
    for gate in gates:
        x, u = leaf("x", gate), leaf("u", gate)
        tried: dict[Expression, Expression] = {}
        signs: _Signs = {}
        for e in below(made.values()):
            tried[e] = _joined(rebuilt(e.op, *(tried[a] for a in e.args)), x, u, signs) if e.args else e
        if not {x, u} & set(below(tried[made[e]] for e in outputs)):
            made = {e: tried[its] for e, its in made.items()}
    return [made[e] for e in (*outputs, *others)]


def _joined(e: Expression, x: Expression, u: Expression, signs: _Signs) -> Expression:
    """A sum of which both shares are terms, with one leaf in place of x and nothing in place of u."""
    if _sign(e, x, signs) * _sign(e, u, signs) > 0:
        return _with_term(_with_term(e, u, ZERO, signs), x, leaf("pre", str(x.value)), signs)
    return e


def _sign(e: Expression, term: Expression, signs: _Signs) -> int:
    """That of a term of a sum; 0 if it is none."""
    if e is term:
        return 1
    if (e, term) not in signs:
        parts = [_sign(a, term, signs) for a in e.args] if e.op in ("add", "subtract", "neg") else [0]
        if e.op in ("subtract", "neg"):
            parts[-1] = -parts[-1]
        signs[e, term] = next(filter(None, parts), 0)
    return signs[e, term]


def _with_term(e: Expression, term: Expression, by: Expression, signs: _Signs) -> Expression:
    """The sum with another term in place of one that it has."""
    if e is term:
        return by
    if e.op == "neg":
        return negative(_with_term(e.args[0], term, by, signs))
    a, b = e.args
    build = add if e.op == "add" else subtract
    if _sign(a, term, signs):
        return build(_with_term(a, term, by, signs), b)
    return build(a, _with_term(b, term, by, signs))
