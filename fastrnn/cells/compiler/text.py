"""A program as text: what a graph that calls a cell's operators holds of it, and what cells are told apart by.

It is JSON: the names, and the expressions one after another, each with the numbers of those that it is made of. Reading
it gives the same program, derivative and all: that is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from fastrnn.cells.compiler.expression import Expression, below, constant, leaf, operation
from fastrnn.cells.compiler.values import VALUES

if TYPE_CHECKING:
    from fastrnn.cells.compiler.program import Program

VERSION = 1
"""Of the format. What an operation means never changes: another meaning is another operation."""
NAMES = ("gates", "states", "parameters", "inputs")
"""A program's groups of names."""
GROUPS = {"x": "gates", "u": "gates", "before": "states", "parameter": "parameters", "input": "inputs"}
"""The kinds of leaves that a step is written with, and the names that they may have."""


def is_name(text: object) -> bool:
    """Whether Python takes it for a name, so that code can be written with it."""
    return isinstance(text, str) and text.isidentifier() and not iskeyword(text)


def written(
    name: str, groups: Mapping[str, Sequence[str]], after: Sequence[Expression], names: Mapping[Expression, str]
) -> str:
    """The text of a step: what `program` takes, `groups` by `NAMES`."""
    nodes = below([*after, *names])
    number = {e: index for index, e in enumerate(nodes)}
    content = {
        "version": VERSION,
        "name": name,
        **{group: list(groups[group]) for group in NAMES},
        "nodes": [[e.op, *(number[a] for a in e.args)] if e.args else [e.op, e.value] for e in nodes],
        "after": [number[e] for e in after],
        "names": [[number[e], its] for e, its in names.items()],
    }
    return json.dumps(content, separators=(",", ":"))


def read(text: str) -> Program:
    """The program that was written so.

    Raises:
        ValueError: it is not one.
    """
    try:
        return _read(json.loads(text))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"this is no program of a cell: {type(error).__name__}: {error}") from error


def _read(content: dict[str, Any]) -> Program:
    from fastrnn.cells.compiler.program import program

    if content["version"] != VERSION:
        raise ValueError(f"its version is {content['version']}, this fastrnn reads {VERSION}")
    groups = {group: content[group] for group in NAMES}
    wrong = [name for name in _names(content, groups) if not is_name(name)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no name")
    nodes: list[Expression] = []
    for op, *arguments in content["nodes"]:
        if op == "constant":
            (value,) = arguments
            nodes.append(constant(float(value)))
        elif op in GROUPS:
            (name,) = arguments
            if name not in groups[GROUPS[op]]:
                raise ValueError(f"{name!r} is none of its {GROUPS[op]}")
            nodes.append(leaf(op, name))
        elif op not in VALUES:
            raise ValueError(f"there is no operation {op!r}")
        else:
            nodes.append(operation(op, *(nodes[_before(place, len(nodes))] for place in arguments)))
    after = [nodes[_before(place, len(nodes))] for place in content["after"]]
    names = {nodes[_before(place, len(nodes))]: name for place, name in content["names"]}
    if not groups["states"] or len(after) != len(groups["states"]):
        raise ValueError(f"it has {len(groups['states'])} states, and {len(after)} after a step")
    return program(content["name"], **groups, after=after, names=names)


def _names(content: dict[str, Any], groups: Mapping[str, Sequence[str]]) -> list[object]:
    return [content["name"], *(name for group in groups.values() for name in group), *(n for _, n in content["names"])]


def _before(place: Any, count: int) -> int:
    """A place in what has been read."""
    if type(place) is not int or not 0 <= place < count:
        raise ValueError(f"{place!r} is not among the {count} expressions so far")
    return place
