"""Small layers of random cells: a backend's kernels against autograd through the PyTorch step."""

from __future__ import annotations

import random
from types import ModuleType

import torch
from hypothesis import assume

from fastrnn.backends import reference
from fastrnn.backends.layer import Gradients, Residuals
from fastrnn.cells.cell import of_program
from fastrnn.cells.known import known
from tests.cells.random_cells import LARGE, program_or_nothing
from tests.random_layers import Shape, any_layer, cast
from tests.tolerances import relative_error

CLOSE = 1e-8
"""Of a tensor's norm: what a cell of 15 primitives makes of rounding in three steps, and far below any mistake."""


def check_layer(source: str, backend: ModuleType) -> None:
    """Both directions of a layer of this function's cell, with lengths and resets: all states and all gradients, from
    what was saved and from what is recomputed."""
    cell = known(of_program(program_or_nothing(source), kept=False))
    torch.manual_seed(0)
    hidden = random.Random(source).randint(5, 19)
    layer = cast(any_layer(cell, Shape(3, 3, 2, hidden, directions=2, lengths=True, resets=True)), torch.float64)
    truth = reference.forward(layer, history=True, gates=False)
    outputs = [*truth.states, *truth.finals]
    assume(all(bool((state.abs() < LARGE).all()) for state in outputs))
    d_outputs = [torch.randn_like(state) for state in outputs]
    floating = [tensor for tensor in layer.tensors() if tensor.is_floating_point()]
    pairs = [(y, d) for y, d in zip(outputs, d_outputs, strict=True) if y.requires_grad]
    of, d_of = zip(*pairs, strict=True)
    wanted = torch.autograd.grad(of, floating, d_of, materialize_grads=True)
    assume(all(bool((d.abs() < LARGE).all()) for d in wanted))
    with torch.no_grad():
        result = backend.forward(layer, history=True, gates=True)
        grads = Gradients(d_outputs[: len(truth.states)], d_outputs[len(truth.states) :])
        kept = [Residuals(result.states, result.saved), Residuals(result.states)]  # of the second all is recomputed
        got = [[d for group in backend.backward(layer, one, grads) for d in group] for one in kept]
    live = torch.arange(3)[:, None] < layer.lengths if layer.lengths is not None else None
    assert live is not None
    found = [*(torch.where(live[..., None], state, 0) for state in result.states), *result.finals]
    for number, (one, other) in enumerate(zip([*found, *got[0], *got[1]], [*outputs, *wanted, *wanted], strict=True)):
        error = relative_error(one, other)
        assert error <= CLOSE, f"number {number} of states, finals and gradients: {error:.1e}\n{source}"
