"""The arguments of a cell's functions in Python: tuples of what an expression's leaves stand for."""

from __future__ import annotations

from collections.abc import Sequence

from fastrnn.cells.compiler.expression import Expression, below, leaf
from fastrnn.cells.compiler.names import variable
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.writer import tuple_of


def variables(outputs: Sequence[Expression]) -> dict[Expression, str]:
    """The variable of each leaf that `outputs` are made of."""
    return {e: variable(e) for e in below(outputs) if e.is_leaf}


def unpacked(p: Program, outputs: Sequence[Expression]) -> list[str]:
    """Lines that assign the variables of those leaves that are used, but for gates' shares, from tuples of states,
    gradients, saved values, blocks, parameters and inputs."""
    used = {e for e in below(outputs) if e.is_leaf}
    groups: dict[str, Sequence[Expression]] = {
        "before": [leaf("before", state) for state in p.states],
        "after": [leaf("after", state) for state in p.states],
        "d_after": [leaf("arriving", state) for state in p.states],
        "saved": [leaf("saved", name) for name in p.saved],
        "blocks": [leaf("block", str(place)) for place in range(len(p.blocks))],
        "parameters": [leaf("parameter", name) for name in p.parameters],
        "inputs": [leaf("input", name) for name in p.inputs],
    }
    return [line for source, group in groups.items() for line in from_tuple(source, group, used)]


def from_tuple(source: str, group: Sequence[Expression], used: set[Expression]) -> list[str]:
    """Lines that assign the variables of those leaves of a group that are used, from the tuple of all."""
    if group and used.issuperset(group):
        return [f"{tuple_of([variable(e) for e in group], True)} = {source}"]
    return [f"{variable(e)} = {source}[{place}]" for place, e in enumerate(group) if e in used]
