"""The arguments of a cell's functions in Python: tuples of what an expression's leaves stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastrnn.cells.compiler.expression import Expression, leaf
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.writer import tuple_of


def unpacked(p: Program, variables: Mapping[Expression, str]) -> list[str]:
    """Lines that assign the variables of leaves, but for gates' shares, from tuples of states, gradients, saved values,
    blocks, parameters and inputs."""
    groups: dict[str, Sequence[Expression]] = {
        "before": [leaf("before", state) for state in p.states],
        "after": [leaf("after", state) for state in p.states],
        "d_after": [leaf("arriving", state) for state in p.states],
        "saved": [leaf("saved", name) for name in p.saved],
        "blocks": [leaf("block", str(place)) for place in range(len(p.blocks))],
        "parameters": [leaf("parameter", name) for name in p.parameters],
        "inputs": [leaf("input", name) for name in p.inputs],
    }
    return [line for source, group in groups.items() for line in from_tuple(source, group, variables)]


def from_tuple(source: str, group: Sequence[Expression], variables: Mapping[Expression, str]) -> list[str]:
    """Lines that assign the variables of those leaves of a group that have one, from the tuple of all."""
    if group and variables.keys() >= set(group):
        return [f"{tuple_of([variables[e] for e in group], True)} = {source}"]
    return [f"{variables[e]} = {source}[{place}]" for place, e in enumerate(group) if e in variables]
