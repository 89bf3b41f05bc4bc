"""What a cell's function sees in place of numbers, and the functions that it may call.

A symbol stands for one number: a value of one unit of one sequence. What is done with it becomes an expression; what
cannot become one raises `CellError`, which names the cell, the line, and what to write instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn
from unicodedata import normalize

from fastrnn.cells.compiler import rules
from fastrnn.cells.compiler.expression import (
    Expression,
    add,
    constant,
    divide,
    leaf,
    multiply,
    negative,
    operation,
    subtract,
)
from fastrnn.cells.compiler.text import is_name
from fastrnn.cells.trace import Trace, current

__all__ = [
    "abs",
    "exp",
    "log",
    "log_sigmoid",
    "maximum",
    "minimum",
    "mix",
    "relu",
    "sigmoid",
    "softplus",
    "sqrt",
    "stop_gradient",
    "tanh",
    "where",
]
_FUNCTIONS = sorted([*__all__, "layer_norm", "mean", "rms_norm"])
"""All that a cell's function may call: those of `normalisation`, too."""

_UFUNCS = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}
"""What NumPy's numbers call when a symbol stands on their right."""
_IF = "a step is the same for all values: in place of `if`, `and`, `or`, `not`, max() and min() use where(), maximum() "
_IF += "and minimum() of fastrnn.cells"


class _Traced:
    """What a symbol and a comparison refuse alike."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __bool__(self) -> NoReturn:
        self._trace.refuse(_IF)

    def __eq__(self, other: object) -> NoReturn:
        self._trace.refuse("== and != are not known: two computed values are hardly ever equal; use where(a <= b, ...)")

    __ne__ = __eq__

    def __hash__(self) -> NoReturn:
        self._trace.refuse("a symbol cannot be in a set or the key of a dict: it has no value yet")

    def __float__(self) -> NoReturn:
        self._trace.refuse("a symbol has no value yet: use the functions of fastrnn.cells, not those of math")

    __int__ = __index__ = __complex__ = __round__ = __trunc__ = __floor__ = __ceil__ = __float__

    def __iter__(self) -> NoReturn:
        self._trace.refuse("a symbol stands for one unit of one sequence: there is nothing to iterate over or to sum")

    def __getitem__(self, index: object) -> NoReturn:
        self._trace.refuse("a symbol stands for one unit of one sequence: it has no elements")

    def __len__(self) -> NoReturn:
        self._trace.refuse("a symbol stands for one unit of one sequence: it has no length")

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._trace.refuse("NumPy's arrays hold numbers, not symbols")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        known = _UFUNCS.get(ufunc.__name__) if method == "__call__" and len(inputs) == 2 else None
        if known is not None and getattr(inputs[0], "shape", None) == ():  # NumPy compares its numbers as arrays
            return known(float(inputs[0]), inputs[1])
        return _foreign(self._trace, "numpy", ufunc.__name__, inputs)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _foreign(current(), "torch", getattr(function, "__name__", str(function)), args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._trace.refuse(f"a symbol has no {name!r}: {_instead(name)}")


class Condition(_Traced):
    """A comparison of two symbols, which `where` takes."""

    def __init__(self, trace: Trace, where: Callable[..., Expression], a: Expression, b: Expression) -> None:
        super().__init__(trace)
        self._choose = lambda then, otherwise: where(a, b, then, otherwise)

    def _combined(self, other: object) -> NoReturn:
        self._trace.refuse("comparisons are not combined by & and |: put one where() into another")

    __and__ = __or__ = __rand__ = __ror__ = __xor__ = __invert__ = _combined


class Symbol(_Traced):
    """A value of one unit of one sequence."""

    def __init__(self, trace: Trace, expression: Expression) -> None:
        super().__init__(trace)
        self._expression = expression

    def __add__(self, other: Any) -> Symbol:
        return _made(self._trace, add, self, other)

    def __radd__(self, other: Any) -> Symbol:
        return _made(self._trace, add, other, self)

    def __sub__(self, other: Any) -> Symbol:
        return _made(self._trace, subtract, self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return _made(self._trace, subtract, other, self)

    def __mul__(self, other: Any) -> Symbol:
        return _made(self._trace, multiply, self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return _made(self._trace, multiply, other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return _made(self._trace, divide, self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return _made(self._trace, divide, other, self)

    def __neg__(self) -> Symbol:
        return _made(self._trace, negative, self)

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return _function("abs", self)

    def __pow__(self, power: Any) -> Symbol:
        if not isinstance(power, Integral) or power < 1:
            self._trace.refuse(f"** {power!r}: powers are positive integers; use sqrt(), 1 / x, or exp(p * log(x))")
        made = self
        for _ in range(int(power) - 1):
            made = made * self
        return made

    def _unknown(self, other: Any) -> NoReturn:
        self._trace.refuse(f"this operator is not known to cells: {_instead('')}")

    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __matmul__ = __rmatmul__ = _unknown
    __rpow__ = __and__ = __or__ = __rand__ = __ror__ = __xor__ = __rxor__ = _unknown

    def __le__(self, other: Any) -> Condition:
        return _compared(self._trace, rules.where_le, self, other)

    def __ge__(self, other: Any) -> Condition:
        return _compared(self._trace, rules.where_le, other, self)

    def __lt__(self, other: Any) -> Condition:
        return _compared(self._trace, rules.where_lt, self, other)

    def __gt__(self, other: Any) -> Condition:
        return _compared(self._trace, rules.where_lt, other, self)


class Shares(_Traced):
    """x or u of a cell's function: an attribute for each gate.

    `gates` are those that have been found, in the order of their first use; with `known` there are no others.
    """

    def __init__(self, trace: Trace, kind: str, gates: list[str], known: bool) -> None:
        super().__init__(trace)
        self._kind, self._gates, self._known = kind, gates, known

    def __getattr__(self, gate: str) -> Symbol:
        if gate.startswith("__"):
            raise AttributeError(gate)
        if gate.startswith("_"):
            self._trace.refuse(f"{self._kind}.{gate}: a gate's name must not begin with _")
        gate = normalize("NFKC", gate)  # as Python does with what is written as x.gate
        if not is_name(gate):
            self._trace.refuse(f"{gate!r} cannot be the name of a gate: it is none of Python's")
        if gate not in self._gates:
            if self._known:
                self._trace.refuse(f"{self._kind}.{gate}: the cell has no gate {gate!r}, only {', '.join(self._gates)}")
            self._gates.append(gate)
        return Symbol(self._trace, leaf(self._kind, gate))

    def __getitem__(self, index: object) -> NoReturn:
        self._trace.refuse(f"{self._kind}[...]: gates have names, as in {self._kind}.i")

    def _no_number(self, *_: object) -> NoReturn:
        self._trace.refuse(f"{self._kind} has a value for each gate: name one, as in {self._kind}.i")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _no_number
    __neg__ = __pos__ = __abs__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _no_number
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __bool__ = __hash__ = __iter__ = __len__ = _no_number
    __float__ = __int__ = __index__ = __complex__ = __round__ = __trunc__ = __floor__ = __ceil__ = _no_number
    __array__ = _no_number
    __array_ufunc__ = _no_number  # type: ignore[assignment]


def _instead(name: str) -> str:
    if name in _FUNCTIONS:
        return f"call {name}() of fastrnn.cells"
    return f"use +, -, *, /, comparisons, and of fastrnn.cells {', '.join(_FUNCTIONS)}"


def _foreign(trace: Trace, library: str, name: str, arguments: Sequence[Any]) -> NoReturn:
    """What a library's function gets to hear that was called with a symbol, or an array's or a tensor's operator."""
    for value in arguments:
        if isinstance(value, Shares) or (hasattr(value, "__array__") and not isinstance(value, (_Traced, Real))):
            expression_of(trace, value)
    trace.refuse(f"{library}.{name} knows no symbols, only numbers: {_instead(name)}")


def kind_of(value: Any) -> str:
    """What a value is called that cannot be used."""
    if isinstance(value, Shares):
        return value._kind
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aei' or name == 'ndarray' else 'a'} {name}"


def expression_of(trace: Trace, value: Any) -> Expression:
    """Of a symbol, or of a number, which is the same in every step, unit and sequence."""
    if isinstance(value, Symbol):
        _check_trace(trace, value)
        return value._expression
    if isinstance(value, Condition):
        trace.refuse("a comparison is no number: use where(condition, a, b)")
    if isinstance(value, Real):
        try:
            number = float(value)
        except OverflowError as error:
            trace.refuse(f"this is no constant of a cell: {error}")
        if number != number:
            trace.refuse("NaN is no constant of a cell")
        return constant(number)
    if isinstance(value, Shares):
        value._no_number()
    if hasattr(value, "__array__"):
        trace.refuse(
            f"{kind_of(value)} is no constant of a cell: what differs by unit is a parameter, an argument after *"
        )
    return trace.refuse(f"{kind_of(value)} is neither a symbol nor a number")


def _check_trace(trace: Trace, value: _Traced) -> None:
    if value._trace is not trace:
        trace.refuse("a symbol of another call is used: a cell's function must keep nothing between calls")


def _made(trace: Trace, build: Callable[..., Expression], *values: Any) -> Symbol:
    for name, value in trace.variables().items():
        if isinstance(value, Symbol) and value._expression.args:
            trace.names.setdefault(value._expression, name)
    arguments = [expression_of(trace, value) for value in values]
    try:
        return Symbol(trace, build(*arguments))
    except (ArithmeticError, ValueError) as error:
        trace.refuse(f"this has no value: {error}")


def _compared(trace: Trace, where: Callable[..., Expression], a: Any, b: Any) -> Condition:
    return Condition(trace, where, expression_of(trace, a), expression_of(trace, b))


def _function(name: str, *values: Any) -> Symbol:
    return _made(current(), lambda *args: operation(name, *args), *values)


def sigmoid(x: Any) -> Symbol:
    """1 / (1 + exp(-x))."""
    return _function("sigmoid", x)


def tanh(x: Any) -> Symbol:
    """The hyperbolic tangent."""
    return _function("tanh", x)


def relu(x: Any) -> Symbol:
    """x where it is positive, else 0; NaN stays. The derivative at 0 is 0."""
    return _function("relu", x)


def exp(x: Any) -> Symbol:
    """e to the power of x."""
    return _function("exp", x)


def log(x: Any) -> Symbol:
    """The natural logarithm."""
    return _function("log", x)


def softplus(x: Any) -> Symbol:
    """log(1 + exp(x)), without overflow."""
    return _function("softplus", x)


def log_sigmoid(x: Any) -> Symbol:
    """log(sigmoid(x)), without overflow or a logarithm of 0."""
    return -softplus(-x)


def sqrt(x: Any) -> Symbol:
    """The square root; its derivative at 0 is infinite."""
    return _function("sqrt", x)


def abs(x: Any) -> Symbol:
    """The absolute value; its derivative at 0 is 0."""
    return _function("abs", x)


def minimum(a: Any, b: Any) -> Symbol:
    """The smaller one; where both are equal each gets half of the gradient."""
    return _function("minimum", a, b)


def maximum(a: Any, b: Any) -> Symbol:
    """The larger one; where both are equal each gets half of the gradient."""
    return _function("maximum", a, b)


def mix(z: Any, a: Any, b: Any) -> Symbol:
    """z a + (1 - z) b. Written so, the gradient of z is that of a - b, without the difference of two products."""
    return _function("mix", z, a, b)


def stop_gradient(x: Any) -> Symbol:
    """x, as a constant to the derivative."""
    return _function("stop_gradient", x)


def where(condition: Any, a: Any, b: Any) -> Symbol:
    """a where the condition, a comparison, holds, else b: also where what is compared is NaN."""
    trace = current()
    if not isinstance(condition, Condition):
        trace.refuse(f"where() takes a comparison first, such as x > 0, not {kind_of(condition)}")
    _check_trace(trace, condition)
    return _made(trace, condition._choose, a, b)
