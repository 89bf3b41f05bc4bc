"""The cells' derivatives against autograd, and against torch's own functions where there is no derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from benchmarks.checkout import ROOT
from fastrnn.cells import (
    CELLS,
    Cell,
    abs,
    functions,
    generate,
    maximum,
    minimum,
    relu,
    softplus,
    sqrt,
    stop_gradient,
    where,
)
from tests.cells.gradients import arguments, assert_derivative
from tests.cells.zoo import ZOO

cells = pytest.mark.parametrize("cell", [*CELLS.values(), *ZOO.values()], ids=lambda cell: cell.name)


@cells
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["ordinary", "saturated"])
def test_the_derivative_is_that_of_the_step(cell: Cell, scale: float) -> None:
    assert_derivative(cell, arguments(cell, scale))


@cells
def test_a_step_returns_what_its_contract_names(cell: Cell) -> None:
    given = arguments(cell)
    after, saved = cell.step(given.gx, given.gh, given.before, given.parameters, given.inputs)
    assert len(after) == len(cell.states)
    assert len(saved) == len(cell.saved)
    assert all(tensor.shape == given.before[0].shape for tensor in (*after, *saved))
    for name, function in cell.activations.items():
        value = dict(zip((*cell.states, *cell.saved), (*after, *saved), strict=True))[name]
        assert value.min() >= {"sigmoid": 0, "tanh": -1, "relu": 0}[function]
        assert function == "relu" or value.max() <= 1


@fastrnn.cell
def ramp(x: Any, h: Any) -> Any:
    return relu(x.a)


@fastrnn.cell
def magnitude(x: Any, h: Any) -> Any:
    return abs(x.a)


@fastrnn.cell
def root(x: Any, h: Any) -> Any:
    return sqrt(x.a)


@fastrnn.cell
def soft(x: Any, h: Any) -> Any:
    return softplus(x.a)


@fastrnn.cell
def larger(x: Any, h: Any) -> Any:
    return maximum(x.a, h)


@fastrnn.cell
def smaller(x: Any, h: Any) -> Any:
    return minimum(x.a, h)


@fastrnn.cell
def clipped(x: Any, h: Any) -> Any:
    return minimum(maximum(-1, x.a), 2.0)


@fastrnn.cell
def chosen(x: Any, h: Any) -> Any:
    return where(x.a <= h, 2 * x.a, 3 * h)


@fastrnn.cell
def chosen_strictly(x: Any, h: Any) -> Any:
    return where(x.a < h, 2 * x.a, 3 * h)


POINTS = [math.nan, -math.inf, -2.0, -1.0, -0.0, 0.0, 1.0, 2.0, 30.0, math.inf]


@pytest.mark.parametrize(
    ("cell", "function"),
    [
        (ramp, lambda x, h: torch.relu(x)),
        (magnitude, lambda x, h: torch.abs(x)),
        (root, lambda x, h: torch.sqrt(x)),
        (soft, lambda x, h: torch.nn.functional.softplus(x, threshold=1e9)),
        (larger, torch.maximum),
        (smaller, torch.minimum),
        (clipped, lambda x, h: torch.minimum(torch.maximum(torch.full_like(x, -1), x), torch.full_like(x, 2))),
        (chosen, lambda x, h: torch.where(x <= h, 2 * x, 3 * h)),
        (chosen_strictly, lambda x, h: torch.where(x < h, 2 * x, 3 * h)),
    ],
    ids=lambda value: value.name if isinstance(value, Cell) else "",
)
def test_values_and_gradients_at_every_point_are_torchs(
    cell: Cell, function: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """At ties, at NaN, and where a function has no derivative."""
    x, h = (
        t.flatten().clone().requires_grad_()
        for t in torch.meshgrid(2 * [torch.tensor(POINTS, dtype=torch.float64)], indexing="ij")
    )
    expected = function(x, h)
    gradients = torch.autograd.grad(expected, (x, h), torch.full_like(h, 3), materialize_grads=True)
    with torch.no_grad():
        after, saved = cell.step(x[None, None], x.new_empty(1, 0, len(x)), (h[None],))
        blocks, d_before = cell.step_backward((torch.full_like(h[None], 3),), saved, (h[None],), after)
    same = {"rtol": 1e-15, "atol": 1e-15, "equal_nan": True}
    torch.testing.assert_close(after[0][0], expected.detach(), **same)
    torch.testing.assert_close(blocks[0][0], gradients[0], **same)
    torch.testing.assert_close(d_before[0][0], gradients[1], **same)


@fastrnn.cell
def stopped(x: Any, u: Any, h: Any, c: Any, *, p: Any) -> Any:
    held = stop_gradient(x.a + u.a + p * c)
    return held * h, held


def test_no_gradient_passes_where_it_is_stopped() -> None:
    given = arguments(stopped)
    assert_derivative(stopped, given)
    known = (given.before, given.parameters)
    after, saved = stopped.step(given.gx, given.gh, *known)
    blocks, d_before = stopped.step_backward(after, saved, given.before, after, given.parameters)
    assert not any(d.any() for d in (*blocks, d_before[1]))
    assert stopped.saved == ()  # what is held is a state after the step


@fastrnn.cell
def halved(x: Any, h: Any) -> Any:
    return 0.5**0.5 * h + where(x.a <= 1, 0.1, 0.2)


def test_constants_keep_all_digits() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    assert halved.step(one, None, (one[0],))[0][0].item() == 0.5**0.5 + 0.1


def test_softplus_and_the_larger_one_of_tensors_and_numbers() -> None:
    x = torch.tensor([-800.0, 0.0, 800.0], dtype=torch.float64)
    assert functions.softplus(x).tolist() == [0, math.log(2), 800]
    assert functions.maximum(1.0, x).tolist() == functions.maximum(x, 1.0).tolist() == [1, 1, 800]
    assert functions.minimum(1.0, x).tolist() == functions.minimum(x, 1.0).tolist() == [-800, 0, 1]


def test_torch_compile_goes_through_a_users_step() -> None:
    """It imports the module that a function says it is of."""
    given = arguments(halved)
    compiled = torch.compile(lambda gx: halved.step(gx, given.gh, given.before)[0][0], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(given.gx), halved.step(given.gx, given.gh, given.before)[0][0])


def test_generated_files_are_what_the_generator_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate.sys, "argv", ["generate", "--check"])
    monkeypatch.chdir(ROOT)
    status = generate.main()
    assert (status, capsys.readouterr().out) == (0, "")
    monkeypatch.chdir(tmp_path)
    status = generate.main()
    assert (status, capsys.readouterr().err) == (2, "there is no fastrnn/cells here: run it in a checkout's root\n")
    path, text = tmp_path / "a.py", "# new\n"
    path.write_text("# old\n")
    monkeypatch.setattr(generate, "files", lambda: {"a.py": text})
    assert (generate.main(), capsys.readouterr().out, path.read_text()) == (1, "stale: a.py\n", "# old\n")
    monkeypatch.setattr(generate.sys, "argv", ["generate"])
    assert (generate.main(), capsys.readouterr().out, path.read_text()) == (0, "written: a.py\n", text)
