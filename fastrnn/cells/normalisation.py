"""Normalisation over the units of a layer, for a cell's function: of a gate's share, a state, or any other value.

`mean` is what it is made of, and all that a step can know of other units.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, overload

from fastrnn.cells.compiler import expression
from fastrnn.cells.compiler.expression import (
    ONE,
    ZERO,
    Expression,
    add,
    constant,
    divide,
    multiply,
    operation,
    subtract,
)
from fastrnn.cells.symbol import Symbol, expression_of
from fastrnn.cells.trace import Trace, current

__all__ = ["layer_norm", "mean", "rms_norm"]

SMALLEST_EPS = 2.0**-126
"""The least normal number of float32."""


def mean(x: Any) -> Symbol:
    """The mean over the units of a sequence: for all of them the same number."""
    trace = current()
    return Symbol(trace, expression.mean(expression_of(trace, x)))


@overload
def layer_norm(x: Sequence[Any], gain: Any = 1, bias: Any = 0, eps: float = 1e-5) -> tuple[Symbol, ...]: ...


@overload
def layer_norm(x: Any, gain: Any = 1, bias: Any = 0, eps: float = 1e-5) -> Symbol: ...


def layer_norm(x: Any, gain: Any = 1, bias: Any = 0, eps: float = 1e-5) -> Any:
    """gain (x - μ) / √(σ² + eps) + bias, with mean μ and variance σ² over the units: Ba et al. (2016).

    "Layer normalization", arXiv 1607.06450. The variance divides by the number of units, as torch.nn.LayerNorm's.

    Args:
        x: a value, or a tuple or list of several that are normalised together, as one vector of so many times H.
        gain, bias: one for all, or one for each of several.
        eps: a number above 0, and one that float32 holds.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.cells import layer_norm, tanh
        >>> @fastrnn.cell
        ... def normalised(x, u, h, *, gain, shift):
        ...     return tanh(x.a + layer_norm(u.a, gain, shift))
        >>> layer = fastrnn.Recurrent(normalised, 3, 4, init={"gain": 1.0, "shift": 0.0})
        >>> layer(torch.randn(5, 2, 3))[0].shape
        torch.Size([5, 2, 4])
    """
    trace = current()
    several = isinstance(x, (tuple, list))
    values, share = _values(trace, x, "layer_norm"), constant(1 / len(x) if several else 1)
    middle = expression.mean(multiply(_sum(values), share))
    squares = [operation("squared_distance", value, middle) for value in values]
    variance = expression.mean(multiply(_sum(squares), share))
    scale = _scale(trace, variance, eps)
    made = [multiply(subtract(value, middle), scale) for value in values]
    results = [
        Symbol(trace, add(multiply(value, g), b))
        for value, g, b in zip(
            made, _each(trace, gain, len(made), "gain"), _each(trace, bias, len(made), "bias"), strict=True
        )
    ]
    return tuple(results) if several else results[0]


@overload
def rms_norm(x: Sequence[Any], gain: Any = 1, eps: float = 1e-5) -> tuple[Symbol, ...]: ...


@overload
def rms_norm(x: Any, gain: Any = 1, eps: float = 1e-5) -> Symbol: ...


def rms_norm(x: Any, gain: Any = 1, eps: float = 1e-5) -> Any:
    """gain x / √(mean of x² + eps), over the units: Zhang and Sennrich (2019).

    "Root mean square layer normalization", arXiv 1910.07467.

    Args:
        x, gain, eps: as `layer_norm`'s.

    Example:
        >>> import fastrnn
        >>> from fastrnn.cells import rms_norm, tanh
        >>> @fastrnn.cell
        ... def scaled(x, u, h, *, gain):
        ...     return rms_norm(tanh(x.a + u.a), gain)
        >>> scaled.parameters
        ('gain',)
    """
    trace = current()
    several = isinstance(x, (tuple, list))
    values, share = _values(trace, x, "rms_norm"), constant(1 / len(x) if several else 1)
    squares = [multiply(value, value) for value in values]
    scale = _scale(trace, expression.mean(multiply(_sum(squares), share)), eps)
    gains = _each(trace, gain, len(values), "gain")
    results = [Symbol(trace, multiply(multiply(value, scale), g)) for value, g in zip(values, gains, strict=True)]
    return tuple(results) if several else results[0]


def _values(trace: Trace, x: Any, name: str) -> list[Expression]:
    values = [expression_of(trace, value) for value in (x if isinstance(x, (tuple, list)) else (x,))]
    if not values:
        trace.refuse(f"{name}() of no value at all")
    if any(value.op == "constant" for value in values):
        trace.refuse(f"{name}() of a number, which is the same for all units")
    return values


def _each(trace: Trace, given: Any, count: int, what: str) -> list[Expression]:
    """A gain or bias for each value."""
    if not isinstance(given, (tuple, list)):
        return [expression_of(trace, given)] * count
    if len(given) != count:
        trace.refuse(f"{what} must be one for all or one for each of {count} values, got {len(given)}")
    return [expression_of(trace, value) for value in given]


def _sum(values: Sequence[Expression]) -> Expression:
    total = ZERO
    for value in values:
        total = add(total, value)
    return total


def _scale(trace: Trace, variance: Expression, eps: float) -> Expression:
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not SMALLEST_EPS <= eps < inf:
        trace.refuse(f"eps must be a finite number of at least {SMALLEST_EPS:.4g}, got {eps!r}")
    return divide(ONE, operation("sqrt", add(variance, constant(eps))))
