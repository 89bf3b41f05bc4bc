"""Expressions: what a step computes of one unit of one sequence.

Equal expressions are one object, so that what occurs twice is computed once, and `is` compares. An expression is an
operation of other expressions, a constant, or a leaf. Leaves of a step are a gate's share of the input's product ("x")
or of the state's ("u"), the sum of both ("pre"), a state before the step ("before"), a parameter and an input of the
step; those of a derivative also a state after the step ("after"), what the step saved ("saved"), the gradient that
reaches a state after the step ("arriving"), and a block of gradients that is known already ("block").

One operation looks at all units of a sequence, and gives each of them the same: their `mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from weakref import WeakValueDictionary

from fastrnn.cells.compiler.values import VALUES

OF_GATES = ("x", "pre", "u")
"""In the order in which their gradients lie."""
LEAVES = (*OF_GATES, "before", "parameter", "input", "after", "saved", "arriving", "block")


@dataclass(frozen=True, eq=False, repr=False)
class Expression:
    """To be made by the functions of this module alone."""

    op: str
    args: tuple[Expression, ...]
    value: float | str | None
    """a constant's number, a leaf's name"""
    is_uniform: bool
    """whether all units of a sequence have the same value"""

    def __repr__(self) -> str:
        """Of its arguments the operations alone: written in whole, what is used twice would double with each use."""
        return f"<{self.op} {self.value}>" if not self.args else f"<{self.op} of {', '.join(a.op for a in self.args)}>"

    @property
    def is_leaf(self) -> bool:
        return self.op in LEAVES


_known: WeakValueDictionary[tuple[object, ...], Expression] = WeakValueDictionary()
_lock = Lock()  # two threads that make the same expression must get the same object


def operation(op: str, *args: Expression) -> Expression:
    """`op` of arguments as they are, unless all are constants: what can be said more simply, the functions below do.

    Raises:
        ArithmeticError, ValueError: `op` has no value for these constants.
    """
    if all(a.op == "constant" for a in args):
        value = VALUES[op](*(a.value for a in args))
        if value != value:
            raise ValueError("it is not a number")
        return constant(value)
    return _only(op, args, None)


def constant(value: float) -> Expression:
    return _only("constant", (), float(value))


def leaf(kind: str, name: str) -> Expression:
    return _only(kind, (), name)


def _only(op: str, args: tuple[Expression, ...], value: float | str | None) -> Expression:
    key = (op, args, value)
    is_uniform = op in ("constant", "mean") or (bool(args) and all(a.is_uniform for a in args))
    with _lock:
        return _known.get(key) or _known.setdefault(key, Expression(op, args, value, is_uniform))


ZERO, ONE = constant(0), constant(1)


def add(a: Expression, b: Expression) -> Expression:
    if a is ZERO:
        return b
    if b is ZERO:
        return a
    if b.op == "neg":
        return subtract(a, b.args[0])
    if a.op == "neg":
        return subtract(b, a.args[0])
    return operation("add", a, b)


def subtract(a: Expression, b: Expression) -> Expression:
    if a is ZERO:
        return negative(b)
    if b is ZERO:
        return a
    if b.op == "neg":
        return add(a, b.args[0])
    return operation("subtract", a, b)


def negative(a: Expression) -> Expression:
    if a.op == "neg":
        return a.args[0]
    if a.op == "subtract":
        return subtract(a.args[1], a.args[0])
    return operation("neg", a)


def multiply(a: Expression, b: Expression) -> Expression:
    if ZERO in (a, b):
        return ZERO
    if a is ONE:
        return b
    if b is ONE:
        return a
    if a.op == "neg":
        return negative(multiply(a.args[0], b))
    if b.op == "neg":
        return negative(multiply(a, b.args[0]))
    return operation("multiply", a, b)


def divide(a: Expression, b: Expression) -> Expression:
    if b is ONE:
        return a
    return operation("divide", a, b)


def mean(a: Expression) -> Expression:
    """Over the units; factors that all units share stay outside, so that fewer values are summed."""
    if a.is_uniform:
        return a
    if a.op == "neg":
        return negative(mean(a.args[0]))
    if a.op in ("multiply", "divide") and a.args[1].is_uniform:
        return rebuilt(a.op, mean(a.args[0]), a.args[1])
    if a.op == "multiply" and a.args[0].is_uniform:
        return multiply(a.args[0], mean(a.args[1]))
    return operation("mean", a)


REBUILT: Mapping[str, Callable[..., Expression]] = {
    "add": add,
    "subtract": subtract,
    "neg": negative,
    "multiply": multiply,
    "divide": divide,
    "mean": mean,
}
"""The operations whose functions simplify."""


def rebuilt(op: str, *args: Expression) -> Expression:
    """`op` of arguments, as simple as this module can say it."""
    return REBUILT[op](*args) if op in REBUILT else operation(op, *args)


def below(outputs: Iterable[Expression], stop: Collection[Expression] = ()) -> list[Expression]:
    """What `outputs` are made of, and themselves, arguments first; nothing that only what is in `stop` is made of."""
    seen: dict[Expression, None] = {}
    todo = list(outputs)[::-1]
    while todo:  # no recursion: a step may have more operations than Python's stack has frames
        e = todo[-1]
        waiting = [a for a in e.args if a not in seen] if e not in seen and e not in stop else []
        if waiting:
            todo += reversed(waiting)
        else:
            seen[todo.pop()] = None
    return list(seen)


def leaves(outputs: Iterable[Expression], kind: str) -> list[str]:
    """The names of the leaves of a kind that `outputs` are made of."""
    return [str(e.value) for e in below(outputs) if e.op == kind]


def replaced(outputs: Iterable[Expression], by: Mapping[Expression, Expression]) -> list[Expression]:
    """The outputs with some expressions replaced by others."""
    outputs, made = list(outputs), dict(by)
    for e in below(outputs, by.keys()):
        if e not in made:
            args = tuple(made[a] for a in e.args)
            made[e] = e if args == e.args else rebuilt(e.op, *args)
    return [made[e] for e in outputs]
