"""Which recurrences are linear, and what they are as sums."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

import fastrnn
from fastrnn.cells import CELLS, Cell, Step, mix, relu, sigmoid, stop_gradient, tanh, where
from fastrnn.cells.compiler import linearity
from fastrnn.cells.compiler.expression import ZERO, Expression, add, below, leaf, multiply
from fastrnn.cells.compiler.linearity import Linear
from fastrnn.cells.compiler.values import VALUES
from fastrnn.cells.library import indrnn, mingru, minlstm
from tests.cells.zoo import ZOO


@fastrnn.cell
def sru(x: Any, h: Any, c: Any) -> Any:
    """The simple recurrent unit (Lei et al., 2018): h enters nothing."""
    f, r = sigmoid(x.f), sigmoid(x.r)
    c = mix(f, c, x.n)
    return mix(r, tanh(c), x.i), c


@fastrnn.cell
def taken_apart(x: Any, h: Any, v: Any, m: Any, *, p: Any, k: Step) -> Any:
    """Two states that enter each other by every operation that is linear, a third that holds what one of them was."""
    force = where(x.a < k, -p * h, stop_gradient(v) - h / (1.5 + x.b * x.b))
    return h + 0.1 * force, mix(sigmoid(x.c), v + 0.1 * force, where(p <= x.a, tanh(x.d), v)) - k, tanh(h * h)


@fastrnn.cell
def forgetful(x: Any, h: Any) -> Any:
    """Nothing enters a step."""
    return tanh(x.a)


LINEAR = {"mingru": mingru, "minlstm": minlstm, "sru": sru, "taken_apart": taken_apart, "forgetful": forgetful}
NOT_LINEAR = {
    "relu": lambda x, h: relu(x.a + h),
    "product": lambda x, h: x.a + h * h,
    "quotient": lambda x, h: x.a / h,
    "gate of a state": lambda x, h: mix(sigmoid(x.a + h), h, x.a),
    "mixed by a state": lambda x, h: mix(h, x.a, 1.0),
    "chosen by a state": lambda x, h: where(h < 0, x.a, h),
    "what is zero": lambda x, h: x.a * tanh(h - h),
}


def evaluated(outputs: Sequence[Expression], values: dict[Expression, float]) -> list[float]:
    """The outputs' values, from those of leaves, or else random ones, which are added."""
    for e in below(outputs):
        if e.op == "constant":
            values[e] = float(e.value)
        elif e.is_leaf:
            values.setdefault(e, random.uniform(-2, 2))
        else:
            values[e] = VALUES[e.op](*(values[a] for a in e.args))
    return [values[e] for e in outputs]


def assert_equal(found: Linear, after: Sequence[Expression], before: Sequence[Expression]) -> None:
    """Factors and rest are free of the values before, and give those after."""
    assert not {e for group in (*found.factors, found.rest) for e in below(group)} & {*before}
    for factors, rest, e in zip(found.factors, found.rest, after, strict=True):
        total = rest
        for factor, old in zip(factors, before, strict=True):
            total = add(total, multiply(factor, old))
        for _ in range(20):
            as_sum, as_step = evaluated([total, e], {})
            assert as_sum == pytest.approx(as_step, rel=1e-12, abs=1e-12)


def assert_linear(cell: Cell) -> tuple[Linear | None, Linear]:
    """What is linear of a cell without a product is right. Returns the step and the derivative."""
    p = cell.program
    assert p is not None
    step, derivative = linearity.forward(p), linearity.backward(p)
    if step is not None:
        assert_equal(step, [p.after[p.states.index(s)] for s in step.states], [leaf("before", s) for s in step.states])
    assert derivative is not None
    assert derivative.states == p.states
    assert_equal(derivative, p.d_before, [leaf("arriving", s) for s in p.states])
    return step, derivative


@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str) -> None:
    step, _ = assert_linear(LINEAR[name])
    assert step is not None
    entering = {"sru": ("c",), "taken_apart": ("h", "v"), "forgetful": ()}
    assert step.states == entering.get(name, ("h",))


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_not_linear(name: str) -> None:
    """Their derivatives are linear all the same."""

    @fastrnn.cell
    def cell(x: Any, h: Any) -> Any:
        return NOT_LINEAR[name](x, h)

    step, _ = assert_linear(cell)
    assert step is None


def test_indrnn() -> None:
    step, derivative = assert_linear(indrnn)
    assert step is None
    ((factor,),) = derivative.factors
    assert leaf("parameter", "w") in below([factor])


def test_a_state_that_enters_nothing_gets_its_own_gradient_alone() -> None:
    """Of the simple recurrent unit: what reaches h goes on to c, nothing goes on to h."""
    _, derivative = assert_linear(sru)
    (h_of_h, h_of_c), (c_of_h, c_of_c) = derivative.factors
    assert h_of_h is h_of_c is ZERO
    assert ZERO not in (c_of_h, c_of_c)


def test_a_product_is_not_linear() -> None:
    for cell in (cell for cell in (*CELLS.values(), *ZOO.values()) if cell.u_gates and cell.program):
        assert linearity.forward(cell.program) is linearity.backward(cell.program) is None
