"""What is known of each operation: its derivative, and how large its value can be.

A derivative is told in terms of the operation's own value wherever that is possible: it is what is worth saving. At the
points where there is none, it is what torch takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

from fastrnn.cells.compiler.expression import (
    ONE,
    ZERO,
    Expression,
    below,
    constant,
    divide,
    mean,
    multiply,
    negative,
    operation,
    subtract,
)
from fastrnn.cells.compiler.values import VALUES

Derivative = Callable[..., tuple[Expression, ...]]
"""From the gradient of an operation's value, the value and the arguments to the gradients of the arguments."""

HALF, TWO = constant(0.5), constant(2)


def where_le(a: Expression, b: Expression, then: Expression, otherwise: Expression) -> Expression:
    """`then` where a ≤ b; `otherwise` where not, which includes NaN."""
    return _where("where_le", a, b, then, otherwise)


def where_lt(a: Expression, b: Expression, then: Expression, otherwise: Expression) -> Expression:
    return _where("where_lt", a, b, then, otherwise)


def _where(op: str, a: Expression, b: Expression, then: Expression, otherwise: Expression) -> Expression:
    if a.op == b.op == "constant":
        return then if VALUES[op](a.value, b.value, True, False) else otherwise
    return then if then is otherwise else operation(op, a, b, then, otherwise)


def _share(d: Expression, a: Expression, b: Expression) -> Expression:
    """Zero where a < b, half of `d` where both are equal, else `d`: also where one of them is NaN."""
    return where_lt(a, b, ZERO, where_le(a, b, multiply(HALF, d), d))


def _chosen(where: Callable[..., Expression], d: Expression, a: Expression, b: Expression) -> tuple[Expression, ...]:
    return ZERO, ZERO, where(a, b, d, ZERO), where(a, b, ZERO, d)


DERIVATIVES: Mapping[str, Derivative] = {
    "add": lambda d, e, a, b: (d, d),
    "subtract": lambda d, e, a, b: (d, negative(d)),
    "neg": lambda d, e, a: (negative(d),),
    "multiply": lambda d, e, a, b: (multiply(d, b), multiply(d, a)),
    "divide": lambda d, e, a, b: (divide(d, b), negative(multiply(divide(d, b), e))),
    "sigmoid": lambda d, e, a: (multiply(multiply(d, e), subtract(ONE, e)),),
    "tanh": lambda d, e, a: (multiply(d, subtract(ONE, multiply(e, e))),),
    "relu": lambda d, e, a: (where_le(e, ZERO, ZERO, d),),
    "exp": lambda d, e, a: (multiply(d, e),),
    "log": lambda d, e, a: (divide(d, a),),
    "softplus": lambda d, e, a: (multiply(d, operation("sigmoid", a)),),
    "sqrt": lambda d, e, a: (divide(multiply(HALF, d), e),),
    "abs": lambda d, e, a: (where_lt(ZERO, a, d, where_lt(a, ZERO, negative(d), ZERO)),),
    "maximum": lambda d, e, a, b: (_share(d, a, b), _share(d, b, a)),
    "minimum": lambda d, e, a, b: (_share(d, b, a), _share(d, a, b)),
    "where_le": lambda d, e, a, b, *_: _chosen(where_le, d, a, b),
    "where_lt": lambda d, e, a, b, *_: _chosen(where_lt, d, a, b),
    "mix": lambda d, e, z, a, b: (multiply(d, subtract(a, b)), multiply(d, z), multiply(d, subtract(ONE, z))),
    "stop_gradient": lambda d, e, a: (ZERO,),
    # What one unit does to the mean it does to all units: its gradient is the mean of what reaches theirs.
    "mean": lambda d, e, a: (mean(d),),
    # The middle is the mean of all whose distances are summed: what reaches it sums to zero.
    "squared_distance": lambda d, e, a, middle: (multiply(multiply(TWO, d), subtract(a, middle)), ZERO),
}

LARGEST_HALF = 65504.0
"""Of float16; bfloat16 holds more."""


def _product(a: float, b: float) -> float:
    """Zero times anything is zero: of infinity it would be no number, which no comparison is true of."""
    return a * b if a and b else 0.0


_MAGNITUDES: Mapping[str, Callable[..., float]] = {
    "sigmoid": lambda a: 1.0,
    "tanh": lambda a: min(a, 1.0),
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a + b,
    "neg": lambda a: a,
    "multiply": _product,
    "relu": lambda a: a,
    "abs": lambda a: a,
    "exp": lambda a: math.exp(a) if a < 700 else math.inf,
    "maximum": max,
    "minimum": max,
    "where_le": lambda a, b, then, otherwise: max(then, otherwise),
    "where_lt": lambda a, b, then, otherwise: max(then, otherwise),
    "mix": lambda z, a, b: _product(z, a) + _product(1 + z, b),
    "stop_gradient": lambda a: a,
    "mean": lambda a: a,
}
"""How large a value can be, from how large the arguments are. Of the others nothing is known."""


def is_bounded(e: Expression) -> bool:
    """Whether every value of `e` fits 16 bits, whatever its leaves are."""
    for part in below([e], _magnitudes):
        if part not in _magnitudes:
            _magnitudes[part] = _magnitude(part)
    return _magnitudes[e] <= LARGEST_HALF


_magnitudes: WeakKeyDictionary[Expression, float] = WeakKeyDictionary()
"""Of expressions that were asked for: what is used twice is looked at once."""


def _magnitude(e: Expression) -> float:
    if e.op == "constant":
        assert isinstance(e.value, float)
        return abs(e.value)
    rule = _MAGNITUDES.get(e.op)
    return math.inf if rule is None else rule(*(_magnitudes[a] for a in e.args))
