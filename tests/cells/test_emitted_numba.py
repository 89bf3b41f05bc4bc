"""A cell's functions over vectors, as they are emitted for Numba, against those of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba", exc_type=ImportError)

from numba import njit  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn.backends import outside  # noqa: E402
from fastrnn.backends.numba.kernels import simd  # noqa: E402
from fastrnn.backends.numba.kernels.cell_kernel import CellKernel, DerivativeAt, StepAt  # noqa: E402
from fastrnn.cells import CELLS, Cell, Step, exp, maximum, mix, relu, sigmoid, tanh, where  # noqa: E402
from fastrnn.cells.compiler.program import Program  # noqa: E402
from fastrnn.cells.emit import numba as emitter  # noqa: E402
from fastrnn.cells.generate import programs  # noqa: E402
from tests.cells.rows import by_pytorch, random_arguments  # noqa: E402
from tests.cells.zoo import ZOO  # noqa: E402

LANES = simd.Vector(numba.float64).lanes
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


@fastrnn.cell
def awkward(x: Any, u: Any, h: Any, some: Any, m: Any, n: Any, *, at: Any, fma: Any, block: Step) -> Any:
    """All kinds of places, one gate of each kind, and names that the kernels have for other things."""
    load = sigmoid(x.sum + u.sum - some * fma)
    store = tanh(x.inside + load * u.inside)
    tanh_ = exp(-m) * store + at * n
    m = tanh(where(h > 0.5, mix(load, relu(h), m), maximum(m, 1)))
    return h * at + tanh_ / (1 + n * n), load * some - block * u.alone, m, 0 * n + 2 / 3


def named() -> dict[str, tuple[Cell, Program]]:
    made = {program.name: (CELLS[program.name], program) for program in programs()}
    made |= {name: (cell, cell.program) for name, cell in (ZOO | {"awkward": awkward}).items() if cell.program}
    return made


def kernel_of(program: Program) -> CellKernel:
    """From the text of a module that is nowhere on disk."""
    namespace: dict[str, Any] = {"__name__": f"made_{program.name}"}
    exec(emitter.module([program], "Made for a test."), namespace)
    kernel = namespace["CELL_KERNELS"][program.name]
    assert isinstance(kernel, CellKernel)
    return kernel


def compiled(kernel: CellKernel) -> tuple[Any, Any]:
    """Loops over all units of one sequence, of places as `StepAt` and `DerivativeAt` have them of the first unit."""
    step, derivative, x_gates, u_gates = kernel.step, kernel.derivative, kernel.x_gates, kernel.u_gates

    @njit
    def run_step(at: StepAt, h_after: int, hidden: int) -> None:
        like = simd.zeros(numba.float64)
        for unit in range(0, hidden, simd.lanes(like)):
            places = StepAt(
                gx=simd.address(like, at.gx, unit * x_gates),
                gh=simd.address(like, at.gh, unit * u_gates),
                h=simd.address(like, at.h, unit),
                others=simd.address(like, at.others, unit),
                others_apart=at.others_apart,
                parameters=simd.address(like, at.parameters, unit),
                inputs=simd.address(like, at.inputs, unit),
                saved=simd.address(like, at.saved, unit) if at.saved != 0 else 0,
                block=at.block,
            )
            simd.store_some(h_after, unit, step(like, places, hidden - unit), hidden - unit)

    @njit
    def run_derivative(at: DerivativeAt, dh: int, hidden: int) -> None:
        like = simd.zeros(numba.float64)
        for unit in range(0, hidden, simd.lanes(like)):
            places = DerivativeAt(
                saved=simd.address(like, at.saved, unit),
                h_before=simd.address(like, at.h_before, unit),
                h_after=simd.address(like, at.h_after, unit),
                others_before=simd.address(like, at.others_before, unit),
                before_apart=at.before_apart,
                others_after=simd.address(like, at.others_after, unit),
                after_apart=at.after_apart,
                d_others=simd.address(like, at.d_others, unit),
                d_apart=at.d_apart,
                parameters=simd.address(like, at.parameters, unit),
                inputs=simd.address(like, at.inputs, unit),
                blocks=simd.address(like, at.blocks, unit),
                block=at.block,
                d_parameters=simd.address(like, at.d_parameters, unit),
                d_parameters_apart=at.d_parameters_apart,
            )
            d = derivative(like, simd.load(like, dh, unit), places, hidden - unit)
            simd.store_some(dh, unit, d, hidden - unit)

    return run_step, run_derivative


class Rows:
    """Rows of numbers, `more` of other numbers between one and the next."""

    def __init__(self, values: Any, hidden: int, more: int = 0) -> None:
        self.all = np.full((len(values), hidden + more), 7.0)
        self.values = self.all[:, :hidden]
        for row, value in zip(self.values, values, strict=True):
            row[:] = value
        self.apart, self.at = hidden + more, self.all.ctypes.data

    def check(self, expected: Any) -> None:
        """That the rows are these, and between them is what was there."""
        for row, value in zip(self.values, expected, strict=True):
            np.testing.assert_allclose(row, value, **CLOSE)
        assert (self.all[:, self.values.shape[1] :] == 7).all()


def side_by_side(shares: torch.Tensor, padded: int) -> np.ndarray:
    """Shares of gates (G, H) as a step finds them: of a vector of units after another."""
    gates, hidden = shares.shape
    room = np.zeros((gates, padded))
    room[:, :hidden] = shares
    return room.reshape(gates, padded // LANES, LANES).transpose(1, 0, 2).copy()


def of_parameters(cell: Cell, arguments: list[torch.Tensor], d_blocks: torch.Tensor) -> np.ndarray:
    """(P, H): a step's share of the gradients."""
    gx, gh, *others = arguments
    before, parameters, inputs, _ = (tuple(group) for group in others)
    after, saved = cell.step(gx, gh, before, parameters, inputs)
    found = outside.by_name(cell, tuple(d_blocks), saved, before, after, parameters, inputs)
    return np.array([found[name].numpy() for name in cell.parameters]).reshape(-1, gx.shape[1])


def assert_same(cell: Cell, program: Program) -> None:
    run_step, run_derivative = compiled(kernel_of(program))
    for hidden in (1, LANES, 2 * LANES + 3):
        padded = -(-hidden // LANES) * LANES
        pad = padded - hidden
        arguments = random_arguments(cell, hidden)
        gx, gh, before, values, inputs, d_after = arguments
        after, saved, d_blocks, d_before = by_pytorch(cell, arguments)

        shares = [side_by_side(share, padded) for share in (gx, gh)]
        h, others, h_after = Rows(before[:1], hidden, pad), Rows(before[1:], hidden, pad + 8), Rows([0], hidden, pad)
        parameters, step_inputs = Rows(values, hidden), Rows(inputs, hidden)
        room = Rows([0] * len(saved), hidden)
        at = StepAt(
            *(share.ctypes.data for share in shares),
            *(h.at, others.at, others.apart, parameters.at, step_inputs.at, room.at, hidden),
        )
        run_step(at, h_after.at, hidden)
        h_after.check(after[:1])
        np.testing.assert_allclose(others.values, after[1:], **CLOSE)
        room.check(saved)

        kept, blocks = Rows(saved, hidden), Rows([0] * len(cell.blocks), hidden)
        h_before, others_before, others_after = (
            Rows(states, hidden, more) for states, more in ((before[:1], 0), (before[1:], 1), (after[1:], 2))
        )
        dh, d_others = Rows(d_after[:1], hidden, pad), Rows(d_after[1:], hidden, pad + 8)
        d_parameters = Rows([1] * len(cell.parameters), hidden, pad + 8)
        places = DerivativeAt(
            *(kept.at, h_before.at, h_after.at, others_before.at, others_before.apart),
            *(others_after.at, others_after.apart, d_others.at, d_others.apart),
            *(parameters.at, step_inputs.at, blocks.at, hidden, d_parameters.at, d_parameters.apart),
        )
        run_derivative(places, dh.at, hidden)
        np.testing.assert_allclose(d_parameters.values, 1 + of_parameters(cell, arguments, d_blocks), **CLOSE)
        blocks.check(d_blocks)
        dh.check(d_before[:1])
        np.testing.assert_allclose(d_others.values, d_before[1:], **CLOSE)


def test_a_cell_that_has_everything() -> None:
    assert_same(*named()["awkward"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in named() if name != "awkward"])
def test_every_cell(name: str) -> None:
    assert_same(*named()[name])


@pytest.mark.parametrize("name", named())
def test_what_kernels_know_is_the_contract(name: str) -> None:
    cell, program = named()[name]
    kernel = kernel_of(program)
    for count in ("x_gates", "u_gates", "states", "parameters", "inputs", "blocks", "saved"):
        assert getattr(kernel, count) == len(getattr(cell, count)), count
