"""Which of a cell's gates only ever add their two shares, so that one pre-activation and one gradient serve both."""

from __future__ import annotations

from collections.abc import Sequence

from fastrnn.cells.compiler.expression import ZERO, Expression, add, below, leaf, negative, rebuilt, subtract


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
        for e in below(made.values()):
            tried[e] = _joined(rebuilt(e.op, *(tried[a] for a in e.args)), x, u) if e.args else e
        if not {x, u} & set(below(tried[made[e]] for e in outputs)):
            made = {e: tried[its] for e, its in made.items()}
    return [made[e] for e in (*outputs, *others)]


def _joined(e: Expression, x: Expression, u: Expression) -> Expression:
    """A sum of which both shares are terms, with one leaf in place of x and nothing in place of u."""
    if _sign(e, x) * _sign(e, u) > 0:
        return _with_term(_with_term(e, u, ZERO), x, leaf("pre", str(x.value)))
    return e


def _sign(e: Expression, term: Expression) -> int:
    """That of a term of a sum; 0 if it is none."""
    if e is term:
        return 1
    if e.op in ("add", "subtract"):
        return _sign(e.args[0], term) or (1 if e.op == "add" else -1) * _sign(e.args[1], term)
    return -_sign(e.args[0], term) if e.op == "neg" else 0


def _with_term(e: Expression, term: Expression, by: Expression) -> Expression:
    """The sum with another term in place of one that it has."""
    if e is term:
        return by
    if e.op == "neg":
        return negative(_with_term(e.args[0], term, by))
    a, b = e.args
    build = add if e.op == "add" else subtract
    return build(_with_term(a, term, by), b) if _sign(a, term) else build(a, _with_term(b, term, by))
