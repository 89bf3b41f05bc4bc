"""What the values of generated code are called."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain, count

from fastrnn.cells.compiler.expression import OF_GATES, Expression

_VARIABLES = {
    "x": "x_{}",
    "u": "u_{}",
    "pre": "a_{}",
    "before": "{}_before",
    "after": "{}_after",
    "arriving": "d{}_after",
    "block": "d{}",
}


def variable(e: Expression) -> str:
    """What a leaf is called."""
    return _VARIABLES.get(e.op, "{}").format(e.value)


def variables(leaves: Iterable[Expression], taken: Collection[str]) -> dict[Expression, str]:
    """What each leaf is called where no two may be called alike, and none as something else is."""
    made: dict[Expression, str] = {}
    for e in sorted(leaves, key=lambda e: e.op not in OF_GATES):  # gates have theirs, whatever an author says
        made[e] = free(variable(e), {*taken, *made.values()})
    return made


def free(name: str, taken: Collection[str]) -> str:
    """The name, or the first of name_, name_2, name_3 and so on that is no other's."""
    behind = chain(("", "_"), (f"_{number}" for number in count(2)))
    return next(made for end in behind if (made := name + end) not in taken)
