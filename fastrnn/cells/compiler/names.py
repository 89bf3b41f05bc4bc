"""What the values of generated code are called."""

from __future__ import annotations

import keyword
from collections.abc import Collection, Sequence

from fastrnn.cells.compiler.expression import Expression, leaf

_GENERATED = """
torch float functions before after saved d_after blocks parameters inputs"""
PYTHON = frozenset({*keyword.kwlist, *_GENERATED.split()})
"""What no value of generated Python can be called: keywords, and what its functions call by these names."""

_VARIABLES = {
    "x": "x_{}",
    "u": "u_{}",
    "pre": "a_{}",
    "before": "{}_before",
    "after": "{}_after",
    "arriving": "d{}_after",
    "block": "block{}",
}


def variable(e: Expression) -> str:
    """What a leaf is called."""
    return _VARIABLES.get(e.op, "{}").format(e.value)


def of_leaves(gates: Sequence[str], states: Sequence[str], others: Sequence[str]) -> set[str]:
    """What else than parameters and inputs, `others`, the leaves of a cell can be called."""
    blocks = [str(place) for place in range(2 * len(gates) + len(others))]
    groups = {"x": gates, "pre": gates, "u": gates, "before": states, "after": states, "arriving": states}
    groups["block"] = blocks
    return {variable(leaf(kind, name)) for kind, group in groups.items() for name in group}


def free(name: str, taken: Collection[str]) -> str:
    """The name, with as many _ behind it as it takes to be no other's."""
    while name in taken:
        name += "_"
    return name
