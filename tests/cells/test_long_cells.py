"""Steps of many operations: neither Python's stack nor its parser ends them, and no time doubles with each."""

from __future__ import annotations

from typing import Any

import pytest

import fastrnn
from fastrnn.cells import Cell, tanh
from fastrnn.cells.compiler.expression import add, leaf, operation
from fastrnn.cells.compiler.layout import with_added_shares
from fastrnn.cells.compiler.rules import is_bounded
from fastrnn.cells.emit.backends import EMITTERS
from fastrnn.cells.show import described
from tests.cells.gradients import arguments, assert_derivative

LONG = 300


@fastrnn.cell
def named(x: Any, u: Any, h: Any) -> Any:
    y = x.a + u.a
    for _ in range(LONG):
        y = 0.5 * y + tanh(h)
    return y


def nested(y: Any, times: int) -> Any:
    return tanh(1 + nested(y, times - 1)) if times else y


@fastrnn.cell
def nameless(x: Any, u: Any, h: Any) -> Any:
    return nested(x.a + u.a, LONG // 2) + h


@fastrnn.cell
def power(x: Any, u: Any, h: Any) -> Any:
    return (x.a + u.a) ** LONG * h


@fastrnn.cell
def terms(x: Any, u: Any, h: Any) -> Any:
    total = x.a
    for power in range(1, LONG):
        total = total + h / power
    return total + u.a


LONG_ONES = {cell.name: cell for cell in (named, nameless, power, terms)}


@pytest.mark.parametrize("cell", LONG_ONES.values(), ids=LONG_ONES)
def test_a_step_may_be_long(cell: Cell) -> None:
    assert_derivative(cell, arguments(cell, scale=0.1))
    assert cell.program is not None
    for backend, emitter in EMITTERS.items():
        text = emitter.text(cell.program)
        if backend != "cuda":
            compile(text, backend, "exec")
        assert max(map(len, text.splitlines())) < 2000  # of parentheses compilers take a few hundred
    assert max(map(len, described(cell))) < 2000


def test_what_is_used_twice_is_looked_at_once() -> None:
    value, total = leaf("x", "a"), add(leaf("x", "a"), leaf("u", "a"))
    for _ in range(100):
        value = operation("tanh", operation("multiply", value, value))
        total = add(total, total)
    assert is_bounded(value)
    assert repr([value, leaf("x", "a")]) == "[<tanh of multiply>, <x a>]"
    assert with_added_shares([total], ["a"]) != [total]
