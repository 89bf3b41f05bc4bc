"""What a step has to save for its derivative: as few values as possible.

The derivative is made of values of the step. Those that come from the states, parameters and inputs alone are at hand;
whatever comes from a gate must be saved, or come from what is. So what is saved is a cut: it parts the gates from the
derivative, in the graph of all values. The states after the step are at hand, too, which cuts for nothing.

A cut of the fewest values is found by way of the largest flow (Ford and Fulkerson, 1956), in which each value lets one
unit pass. Of cuts of equally many values it is one with the fewest that may not fit 16 bits, and of these the nearest
to the derivative, so that backward computes least again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence

from fastrnn.cells.compiler.expression import Expression, below
from fastrnn.cells.compiler.rules import is_bounded

_ONE = 1 << 16
"""What a value costs; that it may not fit 16 bits costs one more."""

Node = tuple[Expression | None, bool]
"""Of an expression where values enter (false) and leave (true); of None the source (false) and the sink (true)."""
_SOURCE: Node = (None, False)
_SINK: Node = (None, True)


def saved(
    step: Sequence[Expression], derivative: Sequence[Expression], gates: Collection[Expression]
) -> list[Expression]:
    """The expressions of a step that its derivative cannot do without.

    `step` are the states after it, `gates` the leaves that backward does not have. The order is that of the step.
    """
    values, needed = below(step), below(derivative)
    free = set(step)
    capacity: dict[Node, dict[Node, float]] = {}

    def edge(a: Node, b: Node, units: float) -> None:
        capacity.setdefault(a, {})[b] = units
        capacity.setdefault(b, {}).setdefault(a, 0)

    candidates = {e for e in values if e not in free and not e.is_uniform}  # what is saved has a value for each unit
    for e in {**dict.fromkeys(values), **dict.fromkeys(needed)}:
        if e in free:
            continue
        cost = _ONE + (not is_bounded(e)) if e in candidates else math.inf
        edge((e, False), (e, True), cost)
        for a in e.args:
            if a not in free:
                edge((a, True), (e, False), math.inf)
    for gate in set(gates) - free:
        edge(_SOURCE, (gate, False), math.inf)
    for e in derivative:
        if e not in free:
            edge((e, True), _SINK, math.inf)
    _fill(capacity)
    reaching = _reaching(capacity)
    return [e for e in values if (e, True) in reaching and (e, False) not in reaching]


def _fill(capacity: dict[Node, dict[Node, float]]) -> None:
    """Lets all flow that can, from the source to the sink: `capacity` becomes what is left (Edmonds and Karp, 1972)."""
    while True:
        came_from: dict[Node, Node] = {_SOURCE: _SOURCE}
        waiting = deque([_SOURCE])
        while waiting and _SINK not in came_from:
            a = waiting.popleft()
            for b, left in capacity.get(a, {}).items():
                if left > 0 and b not in came_from:
                    came_from[b] = a
                    waiting.append(b)
        if _SINK not in came_from:
            return
        path = [_SINK]
        while path[-1] != _SOURCE:
            path.append(came_from[path[-1]])
        edges = list(zip(path[1:], path, strict=False))
        units = min(capacity[a][b] for a, b in edges)
        for a, b in edges:
            capacity[a][b] -= units
            capacity[b][a] += units


def _reaching(capacity: dict[Node, dict[Node, float]]) -> set[Node]:
    """From where more could still flow to the sink."""
    reaching = {_SINK}
    waiting = deque([_SINK])
    while waiting:
        b = waiting.popleft()
        for a in capacity.get(b, {}):
            if a not in reaching and capacity[a][b] > 0:
                reaching.add(a)
                waiting.append(a)
    return reaching
