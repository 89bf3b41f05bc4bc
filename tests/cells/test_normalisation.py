"""Means over units in a cell: the compiler's rules, layer_norm and rms_norm beside torch's, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastrnn
from fastrnn import ops
from fastrnn.cells import Cell, CellError, Step, layer_norm, mean, rms_norm, sigmoid, tanh
from fastrnn.cells.compiler import expression
from fastrnn.cells.compiler.expression import ONE, constant, divide, leaf, multiply, negative, operation, subtract
from fastrnn.cells.compiler.linearity import backward, forward
from fastrnn.cells.known import known, of_text
from fastrnn.cells.library import normalised
from tests.cells.gradients import arguments, assert_derivative
from tests.cells.loops import STEPS, VARIANTS, loop
from tests.cells.test_errors import made
from tests.random_layers import Shape, any_layer, cast, compute, cotangents, parameters
from tests.selection import exhaustive
from tests.tolerances import DROP_IN, relative_error

a, b = leaf("before", "a"), leaf("before", "b")
MEAN = expression.mean(a)


@pytest.mark.parametrize(
    "case",
    [
        (expression.mean(MEAN), MEAN),
        (expression.mean(constant(3)), constant(3)),
        (expression.mean(operation("sqrt", MEAN)), operation("sqrt", MEAN)),
        (expression.mean(negative(a)), negative(MEAN)),
        (expression.mean(multiply(constant(2), a)), multiply(constant(2), MEAN)),
        (expression.mean(multiply(b, MEAN)), multiply(expression.mean(b), MEAN)),
        (expression.mean(divide(a, constant(4))), divide(MEAN, constant(4))),
        (expression.mean(multiply(a, b)), operation("mean", multiply(a, b))),
        (expression.mean(divide(ONE, a)), operation("mean", divide(ONE, a))),
    ],
)
def test_a_mean_is_taken_of_what_differs_alone(case: tuple[Any, Any]) -> None:
    got, expected = case
    assert got is expected


def test_what_is_uniform() -> None:
    assert MEAN.is_uniform
    assert subtract(MEAN, ONE).is_uniform
    assert not a.is_uniform
    assert not subtract(a, MEAN).is_uniform


@fastrnn.cell
def centred(x: Any, u: Any, h: Any, *, gain: Any, shift: Any) -> Any:
    return tanh(layer_norm(h + x.a, gain, shift) + u.a)


@fastrnn.cell
def nested(x: Any, u: Any, h: Any, c: Any, *, gain: Any, k: Step) -> Any:
    """A norm of a norm, a mean that is a factor, a state that is uniform but for its parameter, and an input."""
    inner = rms_norm(x.a + k * u.a, gain)
    new = mean(c) * sigmoid(inner) + c / (1 + mean(h * h))
    return tanh(layer_norm(inner * new)), mean(new) + gain


@fastrnn.cell
def many(x: Any, u: Any, h: Any, *, gain: Any, other: Any, shift: Any) -> Any:
    """Several values as one vector, with one gain for all or one for each."""
    first, second = rms_norm((x.a, u.b), (gain, other))
    third, fourth = layer_norm([u.a, x.b], other, (shift, gain), eps=0.1)
    return tanh(first * third + second * fourth + h)


@fastrnn.cell
def without_product(x: Any, h: Any) -> Any:
    return mean(x.f) * h + x.n


OWN = (centred, nested, many, without_product)
OF_LIBRARY = (*normalised.LSTMS.values(), *normalised.GRUS.values())


@pytest.mark.parametrize("cell", [*OWN, *OF_LIBRARY], ids=lambda cell: cell.name)
def test_the_derivative_is_that_of_the_step(cell: Cell) -> None:
    """At several sizes, of one unit as well, whose distance from the mean is 0."""
    for hidden in (5, 1):
        assert_derivative(cell, arguments(cell, hidden=hidden))
    assert cell.over_units


@pytest.mark.parametrize("cell", [*OWN, *OF_LIBRARY], ids=lambda cell: cell.name)
def test_nothing_uniform_is_saved_and_text_tells_all(cell: Cell) -> None:
    assert cell.program is not None
    assert not any(value.is_uniform for value in cell.program.saved.values())
    again = of_text(cell.program.text)
    assert again.program is not None
    assert again.program.text == cell.program.text
    assert (again.saved, again.blocks, again.over_units) == (cell.saved, cell.blocks, True)


def test_other_units_are_no_linear_recurrence() -> None:
    assert without_product.program is not None
    assert forward(without_product.program) is None
    assert backward(without_product.program) is None


def by_torch(values: list[Tensor], norm: Callable[..., Tensor], eps: float) -> tuple[Tensor, ...]:
    joint = torch.cat(values, -1)
    return norm(joint, joint.shape[-1:], eps=eps).chunk(len(values), -1)


def test_the_functions_are_torchs() -> None:
    """Also far from zero: the variance is that of differences."""
    given = arguments(many)
    x, u, (h,) = given.gx + 1000, given.gh, given.before
    gain, other, shift = given.parameters
    (got,), _ = many.step(x, u, (h,), given.parameters, ())
    of_x, of_u = (
        dict(zip(gates, product.unbind(-2), strict=True)) for gates, product in ((many.x_gates, x), (many.u_gates, u))
    )
    first, second = by_torch([of_x["a"], of_u["b"]], F.rms_norm, 1e-5)
    third, fourth = by_torch([of_u["a"], of_x["b"]], F.layer_norm, 0.1)
    expected = torch.tanh(first * gain * (third * other + shift) + second * other * (fourth * other + gain) + h)
    torch.testing.assert_close(got, expected)


SHAPES = (
    Shape(steps=4, batch=3, hidden=7, directions=2, lengths=True, resets=True),
    Shape(steps=3, batch=1, hidden=9, heads=3, reverse=True),
    Shape(steps=3, batch=2, hidden=8, heads=2, bias=False, directions=2, lengths=True, resets=True),
)
PAPERS = {cell.name: known(cell) for cell in OF_LIBRARY}


@pytest.mark.parametrize("backend", ["reference", *exhaustive("auto")])  # half a minute of a compiler for a cell
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PAPERS)
def test_layers_beside_loops(name: str, shape: Shape, backend: str) -> None:
    """Every variant, in values and all gradients; units of all heads are normalised together."""
    layer = any_layer(PAPERS[name], shape)
    grads = cotangents(layer)
    got = compute(layer, torch.float64, backend, grads)
    again = cast(layer, torch.float64)
    output, finals = loop((STEPS | VARIANTS)[name], again)
    named = parameters(again)
    gradients = torch.autograd.grad([output, *finals], [*named.values()], [d for group in grads for d in group])
    expected = {"output": output, **{f"final[{i}]": final for i, final in enumerate(finals)}}
    expected |= {f"d {key}": d for key, d in zip(named, gradients, strict=True)}
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert relative_error(got[key], value) < DROP_IN, key


@pytest.mark.parametrize("cell", [centred, normalised.layer_norm_lstm], ids=lambda cell: cell.name)
def test_derivatives_of_derivatives(cell: Cell) -> None:
    layer = cast(any_layer(known(cell), Shape(steps=2, batch=2, inputs=2, hidden=3)), torch.float64)
    outline, tensors = layer.parts()

    def results(*given: Tensor) -> tuple[Tensor, ...]:
        result = ops.forward(outline.layer(given), history=True, gates=True, backend="reference")
        return result.states[0], *result.finals

    assert gradcheck(results, tensors, fast_mode=True)
    assert gradgradcheck(results, tensors, fast_mode=True)


SEVERAL = "one for all or one for each of 2 values, got 1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("layer_norm(x.i, eps=0) + u.i", "eps must be a finite number of at least 1.175e-38, got 0"),
        ("rms_norm(x.i, eps=True) + u.i", "eps must be a finite number of at least 1.175e-38, got True"),
        ("layer_norm(x.i, eps='a') + u.i", "eps must be a finite number of at least 1.175e-38, got 'a'"),
        ("layer_norm((x.i, u.i), (h,))[0]", f"gain must be {SEVERAL}"),
        ("layer_norm((x.i, u.i), 1, (h,))[0]", f"bias must be {SEVERAL}"),
        ("rms_norm((x.i, u.i), [h])[0]", f"gain must be {SEVERAL}"),
        ("layer_norm(x.i, eps=1e-60) + u.i", "eps must be a finite number of at least 1.175e-38, got 1e-60"),
        ("layer_norm(())", "layer_norm() of no value at all"),
        ("layer_norm((x.i, 2))[0]", "layer_norm() of a number, which is the same for all units"),
        ("rms_norm([])", "rms_norm() of no value at all"),
        ("layer_norm((x.i, u.i))", "it must return the states after the step, h, got 2 values"),
        ("tanh(layer_norm((x.i, u.i)))", "a tuple is neither a symbol nor a number"),
        ("mean((x.i, u.i))", "a tuple is neither a symbol nor a number"),
        ("layer_norm(x)", "x has a value for each gate: name one, as in x.i"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(CellError) as caught:
        made(f"v = 0\nreturn {text}")
    assert f"f: {reason}" in str(caught.value)


@pytest.mark.parametrize("function", [mean, layer_norm, rms_norm])
def test_outside_of_a_cell(function: Callable[..., Any]) -> None:
    with pytest.raises(CellError, match=r"^the functions of fastrnn\.cells are for the function of a cell"):
        function(1.0)
