"""`torch.utils.flop_counter.FlopCounterMode` counts fastrnn's products: by formulas, and as in the plain reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import fastrnn
from fastrnn.backends import reference
from fastrnn.backends.layer import Gradients, Residuals
from fastrnn.cells import CELLS
from tests.random_layers import Shape, random_layer
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
kinds = pytest.mark.parametrize("kind", GATES)
SHAPES = [Shape(), Shape(directions=2, lengths=True, resets=True), Shape(projection=2), Shape(hidden=6, heads=2)]


def counted(function: Any, *arguments: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return int(counter.get_total_flops())


def train(module: nn.Module, x: Tensor) -> None:
    output = module(x)
    (output if isinstance(output, Tensor) else output[0]).sum().backward()


def infer(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        module(x)


@kinds
def test_a_layer(kind: str) -> None:
    """Backward: the gradients of weights and states, of x where it is asked for, the gates again with `recompute`."""
    rows, gates = 2 * TIME * BATCH, GATES[kind] * HIDDEN
    w_ih, w_hh = rows * gates * INPUT, rows * gates * HIDDEN
    x = torch.randn(TIME, BATCH, INPUT)
    module = getattr(fastrnn, kind)(INPUT, HIDDEN)
    assert [counted(infer, module, x) for _ in range(4)] == [w_ih + w_hh] * 4
    forward_backward = (w_ih + w_hh) + w_hh + (w_ih + w_hh)
    assert [counted(train, module, x) for _ in range(4)] == [forward_backward] * 4
    x.requires_grad_()
    assert counted(train, module, x) == forward_backward + w_ih
    module.recompute = True
    again = 0 if kind == "RNN" else w_ih + w_hh
    assert counted(train, module, x) == forward_backward + w_ih + again
    module.requires_grad_(False)
    assert counted(train, module, x) == (w_ih + w_hh) + w_hh + w_ih + again


@kinds
def test_a_cell(kind: str) -> None:
    module, x = getattr(fastrnn, f"{kind}Cell")(INPUT, HIDDEN), torch.randn(BATCH, INPUT)
    w_ih, w_hh = (2 * BATCH * GATES[kind] * HIDDEN * width for width in (INPUT, HIDDEN))
    assert [counted(infer, module, x) for _ in range(4)] == [w_ih + w_hh] * 4
    assert counted(lambda: module(x)[0].sum().backward()) == 2 * (w_ih + w_hh) + w_hh


@kinds
def test_a_stack_in_both_directions_counts_each_weight(kind: str) -> None:
    options = {"proj_size": 2} if kind == "LSTM" else {}
    module = getattr(fastrnn, kind)(INPUT, HIDDEN, num_layers=2, bidirectional=True, **options)
    weights = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)
    assert counted(infer, module, torch.randn(TIME, BATCH, INPUT)) == 2 * TIME * BATCH * weights


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gates", [True, False], ids=["kept", "recomputed"])
def test_as_many_as_the_reference_multiplies(cell: str, shape: Shape, gates: bool) -> None:
    """Its products, forward and backward, counted by torch one by one."""
    if shape.projection and cell != "lstm":
        pytest.skip("only LSTMs have projections")
    layer = random_layer(cell, shape)
    operators = [getattr(torch.ops.fastrnn, f"{cell}_{direction}") for direction in ("forward", "backward")]
    fields = (layer.x, layer.w_ih, layer.w_hh, layer.biases, layer.extras, layer.states0)
    arguments = (*fields, layer.lengths, layer.resets, layer.reverse, layer.recurrent_mask)
    result = reference.forward(layer, history=True, gates=gates)
    kept, needs = (result.states, result.saved), (True, True)
    arriving: Any = ([torch.ones_like(result.states[0])], [None] * len(result.finals))
    got = [
        counted(operators[0], *arguments, True, gates, "reference"),
        counted(operators[1], *arriving, *kept, *arguments, *needs, "reference"),
    ]
    assert got == [
        counted(lambda: reference.forward(layer, history=True, gates=gates)),
        counted(reference.backward, layer, Residuals(*kept), Gradients(*arriving, *needs)),
    ]


def test_what_torchs_kernels_would_serve_is_counted_too() -> None:
    """But for what is asked for by name, of which torch counts what it counts of its own layers."""
    module, theirs = (namespace.LSTM(INPUT, HIDDEN, dtype=torch.bfloat16) for namespace in (fastrnn, nn))
    x = torch.randn(TIME, BATCH, INPUT, dtype=torch.bfloat16)
    assert fastrnn.explain(module, x).layers == ["aten"]
    weights = 4 * HIDDEN * (INPUT + HIDDEN)
    assert counted(train, module, x) == 2 * TIME * BATCH * (2 * weights + 4 * HIDDEN * HIDDEN)
    module.backend = "aten"
    assert counted(train, module, x) == counted(train, theirs, x)


def test_a_counter_that_was_made_before_fastrnn_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for operator in [operator for operator in flop_registry if str(operator).startswith("fastrnn.")]:
        monkeypatch.delitem(flop_registry, operator)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        fastrnn.GRU(INPUT, HIDDEN)(torch.randn(TIME, BATCH, INPUT))
    assert counter.get_total_flops() == 2 * TIME * BATCH * 3 * HIDDEN * (INPUT + HIDDEN)


def test_a_counters_own_formula_wins() -> None:
    operator = torch.ops.fastrnn.gru_forward
    with FlopCounterMode(display=False, custom_mapping={operator: lambda *_, **__: 7}) as counter:
        infer(fastrnn.GRU(INPUT, HIDDEN), torch.randn(TIME, BATCH, INPUT))
    assert counter.get_total_flops() == 7
