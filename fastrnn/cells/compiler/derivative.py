"""Derivatives of expressions, in reverse mode."""

from __future__ import annotations

from collections.abc import Iterable

from fastrnn.cells.compiler.expression import ZERO, Expression, add, below
from fastrnn.cells.compiler.rules import DERIVATIVES


def gradients(outputs: Iterable[tuple[Expression, Expression]]) -> dict[Expression, Expression]:
    """The gradient of everything that the outputs are made of, from pairs of an output and the gradient that it gets.

    What is not in the result has the gradient zero.
    """
    outputs = list(outputs)
    total: dict[Expression, Expression] = {}

    def arrive(e: Expression, d: Expression) -> None:
        if d is not ZERO:
            total[e] = add(total.get(e, ZERO), d)

    for e, d in outputs:
        arrive(e, d)
    for e in reversed(below(e for e, _ in outputs)):
        if e.args and e in total:
            for a, d in zip(e.args, DERIVATIVES[e.op](total[e], e, *e.args), strict=True):
                arrive(a, d)
    return total
