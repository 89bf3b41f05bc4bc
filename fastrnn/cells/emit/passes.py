"""Expressions with means over units as passes over a row: a mean is known once a pass has seen all units.

What is cheap a later pass computes again; what is dear it gets from the pass that had it first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastrnn.cells.compiler.expression import Expression, below

DEAR = frozenset(["sigmoid", "tanh", "exp", "log", "softplus", "sqrt", "divide"])
"""Operations that take longer than a store and a load."""


class Pass(NamedTuple):
    """One pass over all units of a sequence."""

    outputs: list[Expression]
    """what the means after it are of; of the last pass all that was asked for"""
    loaded: list[Expression]
    """values that an earlier pass has kept"""
    kept: list[Expression]
    """values of its own that a later pass loads"""
    means: list[Expression]
    """those of its outputs, in their order; none after the last pass"""
    uniform: list[Expression]
    """what follows from means alone once these are known, as far as later passes look at it"""


def passes(outputs: Sequence[Expression]) -> list[Pass]:
    """The passes that compute `outputs`, as few as can be."""
    made_of = below(outputs)
    phases: dict[Expression, int] = {}
    dear: dict[Expression, bool] = {}
    for e in made_of:
        phases[e] = max((phases[a] for a in e.args), default=0) + (e.op == "mean")
        dear[e] = not e.is_uniform and (e.op in DEAR or any(dear[a] for a in e.args))
    means = [[e for e in made_of if e.op == "mean" and phases[e] == k] for k in range(1, max(phases.values()) + 1)]
    wanted = [*([e.args[0] for e in group] for group in means), list(outputs)]
    first: dict[Expression, int] = {}
    looked_at: dict[Expression, None] = {}
    loaded: list[list[Expression]] = []
    for number, asked in enumerate(wanted):
        loaded.append(_loaded(asked, dear, first, looked_at))
        known = {*loaded[-1], *(e for e in looked_at)}
        for e in below(asked, known):
            if e not in known:
                first.setdefault(e, number)
    kept = list(dict.fromkeys(e for group in loaded for e in group))
    return [
        Pass(
            asked,
            loaded[number],
            [e for e in kept if first[e] == number],
            means[number] if number < len(means) else [],
            [e for e in looked_at if phases[e] == number + 1],
        )
        for number, asked in enumerate(wanted)
    ]


def _loaded(
    asked: Sequence[Expression],
    dear: Mapping[Expression, bool],
    first: Mapping[Expression, int],
    looked_at: dict[Expression, None],
) -> list[Expression]:
    """What a pass loads instead of computing it again; to `looked_at` goes what it sees of the uniform values.

    A value that one dear argument and cheap ones make is made again: what is loaded is that argument.
    """
    found, seen, todo = [], set(), list(asked)[::-1]
    while todo:
        e = todo.pop()
        if e in seen or e.op == "constant":
            continue
        seen.add(e)
        if e.is_uniform:
            looked_at[e] = None
        elif e in first and dear[e] and (e.op in DEAR or sum(dear[a] for a in {*e.args}) > 1):
            found.append(e)
        else:
            todo += reversed(e.args)
    return found
