"""What the values of generated code are called, in every language that it is written in."""

from __future__ import annotations

import keyword
from collections.abc import Collection, Sequence

from fastrnn.cells.compiler.expression import Expression, leaf

_CPP = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const consteval
constexpr constinit const_cast continue decltype default delete do double dynamic_cast else enum explicit export extern
false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq
private protected public register reinterpret_cast requires return short signed sizeof static static_assert static_cast
struct switch template this thread_local throw true try typedef typeid typename union unsigned using virtual void
volatile wchar_t while xor xor_eq"""
_GENERATED = """
torch functions gx gh before after saved d_after blocks parameters inputs"""
PYTHON = frozenset({*keyword.kwlist, *_GENERATED.split()})
"""What no value of generated Python can be called: keywords, and what its functions call their arguments."""
WORDS = PYTHON | {*_CPP.split()}
"""What an author's names are not, whatever the language."""

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
