"""From expressions to a program: simplification, sums of shares, the blocks' order, what is saved, and names."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

import fastrnn
from fastrnn.cells import Cell, CellError, Step, log, mix, relu, sigmoid, stop_gradient, tanh
from fastrnn.cells.compiler.expression import (
    ONE,
    ZERO,
    Expression,
    add,
    constant,
    divide,
    leaf,
    leaves,
    multiply,
    negative,
    operation,
    subtract,
)
from fastrnn.cells.compiler.rules import is_bounded, where_le, where_lt
from tests.cells.gradients import arguments, assert_derivative
from tests.cells.zoo import ZOO

a, b = leaf("before", "a"), leaf("before", "b")
MINUS = negative(a)


def test_equal_expressions_of_two_threads_are_one_object() -> None:
    """Cells may be made by several threads: leaves are looked for by identity."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            start = Barrier(4)

            def made(number: int) -> Expression:
                start.wait()
                return leaf("x", f"of_threads_{number}")

            for number in range(600):
                assert len(set(pool.map(made, [number] * 4))) == 1
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    "case",
    [
        (add(a, ZERO), a),
        (add(ZERO, a), a),
        (add(b, MINUS), subtract(b, a)),
        (add(MINUS, b), subtract(b, a)),
        (subtract(a, ZERO), a),
        (subtract(ZERO, a), MINUS),
        (subtract(b, MINUS), add(b, a)),
        (negative(MINUS), a),
        (negative(subtract(a, b)), subtract(b, a)),
        (multiply(a, ZERO), ZERO),
        (multiply(ZERO, a), ZERO),
        (multiply(a, ONE), a),
        (multiply(ONE, a), a),
        (multiply(MINUS, b), negative(multiply(a, b))),
        (multiply(b, MINUS), negative(multiply(b, a))),
        (divide(a, ONE), a),
        (operation("multiply", constant(2), constant(3)), constant(6)),
        (operation("sigmoid", ZERO), constant(0.5)),
        (where_le(a, b, ONE, ONE), ONE),
        (where_lt(a, b, b, b), b),
        (where_lt(ZERO, ONE, a, b), a),
        (where_le(ONE, ZERO, a, b), b),
    ],
)
def test_what_is_simpler_is_said_simply(case: tuple[Expression, Expression]) -> None:
    made, expected = case
    assert made is expected


@pytest.mark.parametrize("arguments", [("log", ZERO), ("divide", ONE, ZERO), ("exp", constant(1e4))])
def test_constants_without_a_value(arguments: Any) -> None:
    with pytest.raises((ArithmeticError, ValueError)):
        operation(*arguments)


def test_what_fits_16_bits() -> None:
    gate = operation("sigmoid", a)
    assert is_bounded(gate)
    assert is_bounded(operation("mix", gate, gate, operation("tanh", b)))
    assert is_bounded(multiply(constant(60000), gate))
    assert not is_bounded(multiply(constant(70000), gate))
    assert not is_bounded(a)
    assert not is_bounded(operation("maximum", gate, operation("mix", a, ZERO, multiply(b, constant(7)))))


@pytest.mark.parametrize(
    "case",
    [
        (lambda x, u, p, h: x.i + p * h + u.i, ("a_i",)),
        (lambda x, u, p, h: u.i + (p * h + x.i), ("a_i",)),
        (lambda x, u, p, h: p - ((h - x.i) - u.i), ("a_i",)),
        (lambda x, u, p, h: -x.i - p * h - u.i, ("a_i",)),
        (lambda x, u, p, h: x.i - u.i, ("x_i", "u_i")),
        (lambda x, u, p, h: x.i + h * u.i, ("x_i", "u_i")),
        (lambda x, u, p, h: (x.i + x.i) + u.i, ("x_i", "u_i")),
        (lambda x, u, p, h: tanh(x.i + u.i) + x.i, ("x_i", "u_i")),
        (lambda x, u, p, h: tanh(x.i + u.i) + sigmoid(u.i + h + x.i), ("a_i",)),
    ],
)
def test_shares_that_are_only_ever_added_have_one_gradient(case: Any) -> None:
    function, blocks = case

    @fastrnn.cell
    def cell(x: Any, u: Any, h: Any, *, p: Any) -> Any:
        return p * tanh(function(x, u, p, h))

    assert tuple(name for name in cell.blocks if name != "p") == blocks
    assert_derivative(cell, arguments(cell))


def test_a_part_of_a_sum_may_have_a_name() -> None:
    @fastrnn.cell
    def cell(x: Any, u: Any, h: Any, *, p: Any) -> Any:
        part = x.i + p * h
        return tanh(part + u.i)

    assert cell.blocks == ("a_i",)


def test_blocks_follow_what_their_gates_multiply() -> None:
    """First those of x alone, then of both, then of u alone, each in the order of the weights' rows."""

    @fastrnn.cell(gates="dcba")
    def cell(x: Any, u: Any, h: Any) -> Any:
        return tanh(x.a + u.a) + tanh(x.d + u.d) * u.c + tanh(h * u.b) + tanh(x.b) * x.c

    assert cell.blocks == ("x_c", "x_b", "a_d", "a_a", "u_c", "u_b")
    assert (cell.x_gates, cell.dgx) == (("d", "c", "b", "a"), (2, 0, 1, 3))
    assert (cell.u_gates, cell.dgh) == (("d", "c", "b", "a"), (2, 4, 5, 3))


def test_gates_are_in_the_order_of_their_first_use() -> None:
    @fastrnn.cell
    def cell(x: Any, u: Any, h: Any) -> Any:
        return sigmoid(u.k + x.k) * tanh(x.z) + u.a * x.f

    assert cell.x_gates == ("k", "z", "f")
    assert cell.u_gates == ("k", "a")


@pytest.mark.parametrize(
    "case",
    [
        (lambda x, u, h: tanh(x.a + u.a), ()),  # the state after the step
        (lambda x, u, h: sigmoid(x.a + u.a) * h, ("a",)),
        (lambda x, u, h: h + tanh(x.a + u.a + h), ("a",)),
        (lambda x, u, h: stop_gradient(tanh(x.a)) * h + relu(u.b), ("saved0", "b")),
        (lambda x, u, h: h * tanh(x.a + sigmoid(x.b + u.b) * u.a), ("a", "b", "u_a")),
        (lambda x, u, h: x.a * u.a, ("x_a", "u_a")),
        (lambda x, u, h: x.a + u.b + h * h, ()),
        (lambda x, u, h: h * stop_gradient(log(sigmoid(x.a))), ("a",)),  # as good as the logarithm, and fits 16 bits
    ],
)
def test_what_is_saved(case: Any) -> None:
    function, saved = case

    @fastrnn.cell
    def cell(x: Any, u: Any, h: Any) -> Any:
        return function(x, u, h)

    assert cell.saved == saved


def test_no_names_are_alike() -> None:
    """Whatever a function calls its values, what its generated code reads by that name is something else."""

    @fastrnn.cell
    def cell(x: Any, u: Any, h: Any, c: Any, *, p: Any, da_d: Any, c_before: Step, gx: Step) -> Any:
        before = sigmoid(x.a + u.a)
        dh_after = tanh(x.b + before * u.b)
        saved, torch = sigmoid(x.d + u.d), sigmoid(x.e)
        p = sigmoid(p + x.g)
        h_before = sigmoid(h + x.f)
        h = tanh(u.f + h)
        c_after = mix(before, dh_after, c * saved)
        return h_before * h + p * torch + gx * c_before, p * c_after * torch * da_d

    assert set(cell.saved) >= {"before", "dh_after", "saved", "torch", "p_", "h_before"}
    assert not {"h", "p"} & set(cell.saved)
    assert_derivative(cell, arguments(cell))


def test_a_state_of_parameters_alone_has_the_shape_of_states() -> None:
    @fastrnn.cell
    def cell(x: Any, h: Any, c: Any, d: Any, *, p: Any) -> Any:
        return c + x.a, 2 * p, 0 * d

    given = arguments(cell)
    after, _ = cell.step(given.gx, given.gh, given.before, given.parameters)
    assert [state.shape for state in after] == 3 * [given.before[0].shape]
    assert_derivative(cell, given)


def test_powers() -> None:
    @fastrnn.cell
    def cell(x: Any, h: Any) -> Any:
        return +(x.a**3) + abs(h) ** 1

    program = cell.program
    assert program is not None
    assert leaves(program.after, "x") == ["a"]
    assert_derivative(cell, arguments(cell))


def test_cells_are_compared_and_shown_without_their_program() -> None:
    cell: Cell = ZOO["mgu"]
    assert "program" not in repr(cell)
    assert len({cell, ZOO["star"], cell}) == 2
    assert issubclass(CellError, TypeError)
