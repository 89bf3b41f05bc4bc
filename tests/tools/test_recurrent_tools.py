"""Layers of any cell in the other rooms: conversion, probe, explain, and what is told where there is no way."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
import fastrnn.keras
from fastrnn.module import opacus_objection
from tests.cells.zoo import ZOO
from tests.layers.plain_loops import as_hx, groups, inputs_of, recurrent, single, states_of, step
from tests.selection import exhaustive
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, error_of, random, tensors

ANY = torch.export.Dim.DYNAMIC
every = pytest.mark.parametrize("name", ZOO)
cells = pytest.mark.parametrize("name", ["peephole_lstm", "slstm", "indrnn", "zoneout_lstm", "scaled_residual"])
makes = pytest.mark.parametrize("make", [recurrent, single], ids=["layers", "step"])


@makes
def test_conversion_leaves_them_and_says_so(make: Any) -> None:
    model, reports = nn.Sequential(nn.Linear(2, INPUT), make("peephole_lstm")), list[str]()
    before, kind = model[1], type(model[1]).__name__
    fastrnn.accelerate(model, report=lambda change: reports.append(str(change)))
    fastrnn.to_torch(model, report=lambda change: reports.append(str(change)))
    assert reports == [
        f"1: fastrnn.{kind} left (already)",
        f"1: fastrnn.{kind} left (torch.nn has none of the cell peephole_lstm)",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.accelerate(model)
    with pytest.warns(UserWarning, match=rf"(?s)to_torch: not every .* 1: fastrnn.{kind} left \(torch.nn has none of"):
        fastrnn.to_torch(model)
    assert model[1] is before
    assert type(before).__name__ == kind


def test_beside_them_torchs_layers_are_converted() -> None:
    model = fastrnn.accelerate(nn.ModuleList([nn.LSTM(2, 3), recurrent("indrnn")]))
    assert [type(layer).__name__ for layer in model] == ["LSTM", "Recurrent"]
    assert isinstance(model[0], fastrnn.LSTM)


@every
def test_probes_see_every_step(name: str) -> None:
    """The figures of states and of their whole gradients, against a loop whose states keep theirs."""
    module = recurrent(name)
    x, states, inputs = random(TIME, BATCH, INPUT), states_of(module), inputs_of(module)
    with fastrnn.probe(module) as record:
        output, _ = module(x, as_hx(states), **inputs)
        output.square().sum().backward()
    figures = record["Recurrent"]

    own, outputs, kept = tuple(state[0] for state in states), [], []
    for t in range(TIME):
        own = step(module, "_l0", x[t], own, [value[0, t] for value in inputs.values()])
        for state in own:
            if state.requires_grad:
                state.retain_grad()
        outputs.append(own[0])
        kept.append(own)
    torch.stack(outputs).square().sum().backward()
    assert figures.gradient_norms is not None
    for index, state in enumerate(module.cell.states):
        norms = [row[index].norm(dim=-1).mean() for row in kept]
        grads = [torch.zeros(()) if (d := row[index].grad) is None else d.norm() for row in kept]
        assert_close(figures.state_norms[state][0], torch.stack(norms).detach())
        assert_close(figures.gradient_norms[state][0], torch.stack(grads).double())
    assert figures.cell_name == name
    assert name not in ("peephole_lstm", "zoneout_lstm") or [*figures.gate_means] == ["i", "f", "g", "o"]
    assert "Recurrent layer 0" in record.summary() or "Recurrent" in record.summary()


def test_probes_join_the_steps_of_a_cell() -> None:
    cell = single("slstm")
    own = states_of(cell, BATCH, HIDDEN)
    with fastrnn.probe(cell) as record:
        for _ in range(TIME):
            own = cell(random(BATCH, INPUT), own)
        own[0].sum().backward()
    figures = record["RecurrentCell"]
    assert figures.state_norms["n"].shape == (1, TIME)
    assert figures.gradient_norms is not None
    assert (figures.gradient_norms["c"] > 0).all()


@cells
def test_explanations_take_what_calls_take(name: str) -> None:
    layer, cell = recurrent(name, num_layers=2), single(name)
    x, states, inputs = random(TIME, BATCH, INPUT), as_hx(states_of(layer)), inputs_of(layer)
    found = fastrnn.explain(layer, x, states, lengths=[1, 2, 3], **inputs)
    assert found.layers == ["reference"] * 2
    assert found.reasons["aten"].startswith("cannot: torch has no kernels for ")
    own, fed = as_hx(states_of(cell, BATCH, HIDDEN)), inputs_of(cell, BATCH, HIDDEN)
    assert fastrnn.explain(cell, x[0], own, **fed).layers == ["reference"]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = layer, single(name)

        def forward(self, x: Tensor) -> Any:
            return self.above(self.below(x, **inputs)[0][-1, :, :INPUT], **fed)

    model = fastrnn.explain(Model(), x)
    assert [(called, one.layers) for called, one in model.calls] == [
        ("below", ["reference"] * 2),
        ("above", ["reference"]),
    ]


def test_explanations_refuse_what_calls_refuse() -> None:
    x = random(TIME, BATCH, INPUT)
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (recurrent("zoneout_lstm"), (x,), {}),
        (recurrent("peephole_lstm"), (x,), {"keep": x}),
        (single("indrnn"), (x[0], (x[0],)), {}),
        (single("slstm"), (x[0], x[0]), {}),
    ]
    for module, given, options in calls:
        got, expected = (
            error_of(lambda: fastrnn.explain(module, *given, **options)),  # noqa: B023
            error_of(lambda: module(*given, **options)),  # noqa: B023
        )
        assert (type(got), str(got)) == (type(expected), str(expected))


@makes
def test_where_there_is_no_way(make: Any) -> None:
    module = make("peephole_lstm")
    with pytest.raises(TypeError, match=r"expected RNN, GRU or LSTM of fastrnn or torch.nn, got fastrnn.recurrent"):
        fastrnn.keras.get_weights(module)
    of_layers = "Opacus has no layer of other cells: torch.func gives"
    assert ("a cell's state: use a layer" if make is single else of_layers) in opacus_objection(module)


@pytest.mark.parametrize("name", [*exhaustive("slstm"), "zoneout_lstm"])
def test_onnx_has_them_as_scans(name: str) -> None:
    """With all that a layer takes, for every T and B."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import fastrnn.onnx

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = recurrent(name, dtype=torch.float32, bidirectional=True)

        def forward(self, x: Tensor, hx: Any, lengths: Tensor, resets: Tensor, *inputs: Tensor) -> Any:
            named = dict(zip(self.rnn.cell.inputs, inputs, strict=True))
            return self.rnn(x, hx, lengths=lengths, resets=resets, return_states=True, **named)

    def arguments(steps: int, batch: int) -> tuple[Any, ...]:
        hx = as_hx(tuple(state.detach() for state in states_of(model.rnn, groups(model.rnn), batch, HIDDEN)))
        inputs = [value.detach() for value in inputs_of(model.rnn, steps, batch, HIDDEN).values()]
        lengths, resets = torch.randint(0, steps + 1, (batch,)), torch.rand(steps, batch) < 0.3
        return torch.randn(steps, batch, INPUT), hx, lengths, resets, *inputs

    model = Model().eval()
    both, cell = {0: ANY, 1: ANY}, model.rnn.cell
    hx = as_hx(({1: ANY},) * len(cell.states))
    axes = (both, hx, {0: ANY}, both, *[(both,) * len(cell.inputs)] * (len(cell.inputs) > 0))
    program: Any = fastrnn.onnx.export(model, arguments(5, 3), dynamic_shapes=axes, verbose=False)
    assert [node.op_type for node in program.model.graph].count("Scan") == groups(model.rnn)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    for steps, batch in ((9, 2), (1, 4)):
        given = arguments(steps, batch)
        arrays = [tensor.numpy() for tensor in tensors(given)]
        fed = {one.name: array for one, array in zip(session.get_inputs(), arrays, strict=True)}
        with torch.no_grad():
            expected = tensors(model(*given))
        assert_close([torch.from_numpy(y) for y in session.run(None, fed)], expected, 1e-6)
