"""Whether a recurrence is linear: what a step makes of some values is a sum of them, each times a factor, and a rest.

Of a step these values are the states, of a derivative the gradients that reach them. Factors and rest are free of the
values themselves, so that steps can be put together before it is known what enters the first: a recurrence becomes a
scan. What is said here is exact but for rounding, and cautious: an expression that the rules below do not take apart is
not linear, though it may equal one that is, as relu(h) - relu(-h) does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

from fastrnn.cells.compiler.expression import (
    ONE,
    ZERO,
    Expression,
    add,
    below,
    divide,
    leaf,
    multiply,
    negative,
    operation,
    subtract,
)
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.compiler.rules import where_le, where_lt


@dataclass(frozen=True)
class Linear:
    """after_i = Σ_j factors[i][j] before_j + rest[i], of the states that have these names."""

    states: tuple[str, ...]
    factors: tuple[tuple[Expression, ...], ...]
    rest: tuple[Expression, ...]

    @cached_property
    def entries(self) -> list[tuple[int, int]]:
        """Where factors are other than zero, row by row."""
        return [(i, j) for i, row in enumerate(self.factors) for j, factor in enumerate(row) if factor is not ZERO]

    @cached_property
    def entries_of_products(self) -> list[tuple[int, int]]:
        """As `entries`, of any product of such matrices, none of them (which is the identity) included."""
        count = range(len(self.states))
        found = {*self.entries, *((i, i) for i in count)}
        for k, i, j in product(count, repeat=3):  # Warshall's order: paths through the first k states
            if (i, k) in found and (k, j) in found:
                found.add((i, j))
        return sorted(found)


@cache
def forward(p: Program) -> Linear | None:
    """The step of the states that a step looks at, in leaves as those of the step; None where it is not linear.

    A state that no step looks at needs no recurrence: it follows from those that enter the step, whatever it is of
    them. Where the state has a product, or a mean is taken, the step is not linear in what one unit knows.
    """
    read = p.read("before", p.after)
    if _mixes_units(p):
        return None
    after = dict(zip(p.states, p.after, strict=True))
    return linear(read, [after[state] for state in read], [leaf("before", state) for state in read])


@cache
def backward(p: Program) -> Linear | None:
    """How the gradients that reach the states after a step become those that reach the states before it, in leaves as
    those of the derivative; None where other units have a share: by the state's product, or a mean."""
    if _mixes_units(p):
        return None
    found = linear(p.states, p.d_before, [leaf("arriving", state) for state in p.states])
    assert found is not None, "every rule of a derivative is linear in the gradient"
    assert set(found.rest) <= {ZERO}, "and without a gradient there is none"
    return found


def _mixes_units(p: Program) -> bool:
    return len(p.shares("u")) > 0 or p.over_units


def linear(states: Sequence[str], after: Sequence[Expression], before: Sequence[Expression]) -> Linear | None:
    """Each of `after` taken apart into factors of the leaves `before` and a rest; None where one cannot be."""
    parts: dict[Expression, _Parts] = {}
    for e in below(after):
        if e in before:
            parts[e] = _Parts({e: ONE}, ZERO)
        elif not any(parts[a].factors for a in e.args):
            parts[e] = _Parts({}, e)
        else:
            taken = _RULES[e.op](*(parts[a] for a in e.args)) if e.op in _RULES else None
            if taken is None:
                return None
            parts[e] = taken
    found = [parts[e] for e in after]
    factors = tuple(tuple(of.factors.get(e, ZERO) for e in before) for of in found)
    return Linear(tuple(states), factors, tuple(of.rest for of in found))


@dataclass(frozen=True)
class _Parts:
    """An expression as a sum."""

    factors: Mapping[Expression, Expression]
    """of the values that it is made of. One whose factor is zero counts, too: of infinity h - h is no number"""
    rest: Expression


_Rule = Callable[..., "_Parts | None"]
"""From the parts of an operation's arguments, of which one at least has factors, to its own."""


def _each(combine: Callable[..., Expression], *of: _Parts) -> _Parts:
    """What is linear in all of these together."""
    values = dict.fromkeys(value for part in of for value in part.factors)
    factors = {value: combine(*(part.factors.get(value, ZERO) for part in of)) for value in values}
    return _Parts(factors, combine(*(part.rest for part in of)))


def _multiplied(a: _Parts, b: _Parts) -> _Parts | None:
    if a.factors and b.factors:
        return None
    return _each(lambda e: multiply(e, b.rest), a) if a.factors else _each(lambda e: multiply(a.rest, e), b)


def _divided(a: _Parts, b: _Parts) -> _Parts | None:
    return None if b.factors else _each(lambda e: e if e is ZERO else divide(e, b.rest), a)


def _mixed(z: _Parts, a: _Parts, b: _Parts) -> _Parts | None:
    def mix(e: Expression, other: Expression) -> Expression:
        if e is ZERO:
            return multiply(subtract(ONE, z.rest), other)
        return multiply(z.rest, e) if other is ZERO else operation("mix", z.rest, e, other)

    return None if z.factors else _each(mix, a, b)


def _chosen(where: Callable[..., Expression]) -> _Rule:
    def rule(a: _Parts, b: _Parts, then: _Parts, otherwise: _Parts) -> _Parts | None:
        if a.factors or b.factors:
            return None
        return _each(lambda e, other: where(a.rest, b.rest, e, other), then, otherwise)

    return rule


_RULES: Mapping[str, _Rule] = {
    "add": lambda a, b: _each(add, a, b),
    "subtract": lambda a, b: _each(subtract, a, b),
    "neg": lambda a: _each(negative, a),
    "multiply": _multiplied,
    "divide": _divided,
    "mix": _mixed,
    "where_le": _chosen(where_le),
    "where_lt": _chosen(where_lt),
    "stop_gradient": lambda a: a,
}
"""Of all other operations nothing is linear."""
