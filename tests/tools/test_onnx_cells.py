"""Layers of the library's cells exported to ONNX: ONNX Runtime computes what the modules do, whatever T and B are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.cells import library
from tests.selection import exhaustive
from tests.tools.test_onnx import ANY, BATCH, HIDDEN, INPUT, TIME, assert_agrees, export, session

SHOWN = ("layer_norm_gru",)
"""The others take some seconds each."""


class Everything(nn.Module):
    """All that a layer is called with, given."""

    def __init__(self, name: str) -> None:
        super().__init__()
        cell = getattr(library, name)
        heads = 2 if cell.u_gates else 1
        self.rnn = fastrnn.Recurrent(cell, INPUT, HIDDEN, bidirectional=True, num_heads=heads, backend="reference")

    def forward(self, x: Tensor, hx: Any, lengths: Tensor, resets: Tensor, *inputs: Tensor) -> Any:
        given = dict(zip(self.rnn.cell.inputs, inputs, strict=True))
        return self.rnn(x, hx, lengths=lengths, resets=resets, **given)

    def case(self, steps: int, batch: int) -> tuple[Any, ...]:
        states, inputs = self.rnn.cell.states, self.rnn.cell.inputs
        hx = tuple(torch.rand(2, batch, HIDDEN) + 0.5 for _ in states)  # at which none divides by nearly nothing
        lengths = torch.randint(0, steps + 1, (batch,))
        lengths[-1], lengths[0] = 0, steps
        resets = torch.rand(steps, batch) < 0.3
        fed = (torch.rand(steps, batch, HIDDEN) for _ in inputs)
        return torch.randn(steps, batch, INPUT), hx if len(hx) > 1 else hx[0], lengths, resets, *fed


@pytest.mark.parametrize("name", [*SHOWN, *exhaustive(*(name for name in library.__all__ if name not in SHOWN))])
def test_a_layer_of_any_cell(name: str) -> None:
    model = Everything(name)
    states, inputs = model.rnn.cell.states, model.rnn.cell.inputs
    per_step = {0: ANY, 1: ANY}
    hx = tuple({1: ANY} for _ in states) if len(states) > 1 else {1: ANY}
    shapes = (per_step, hx, {0: ANY}, per_step, *[(per_step,) * len(inputs)] * bool(inputs))
    program = export(model, *model.case(TIME, BATCH), dynamic_shapes=shapes)
    scans = [node for node in program.model.graph if node.op_type == "Scan"]
    assert len(scans) == 2, "one for each direction"
    assert_agrees(model, session(program), *(model.case(*sizes) for sizes in ((TIME, BATCH), (1, 1), (9, 2))))
