"""What each operation gives of numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


VALUES: Mapping[str, Callable[..., float]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "neg": operator.neg,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "sigmoid": _sigmoid,
    "tanh": math.tanh,
    "relu": lambda x: 0.0 if x <= 0 else x,
    "exp": math.exp,
    "log": math.log,
    "softplus": _softplus,
    "sqrt": math.sqrt,
    "abs": abs,
    "maximum": max,
    "minimum": min,
    "where_le": lambda a, b, then, otherwise: then if a <= b else otherwise,
    "where_lt": lambda a, b, then, otherwise: then if a < b else otherwise,
    "mix": lambda z, a, b: z * a + (1 - z) * b,
    "stop_gradient": lambda x: x,
    "mean": lambda x: x,
    "squared_distance": lambda x, middle: (x - middle) ** 2,
}
"""Of a mean over units: all have the same number. They raise ArithmeticError or ValueError where there is no value."""
