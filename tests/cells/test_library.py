"""The library's cells beside loops that are written from their papers."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import fastrnn
from fastrnn import cells, ops
from fastrnn.__main__ import main
from fastrnn.backends.layer import Layer
from fastrnn.cells import Cell, library
from fastrnn.cells.gru import gru
from fastrnn.cells.known import known
from tests.cells.loops import STEPS, loop
from tests.random_layers import Shape, any_layer, cast, compute, cotangents, parameters, rounded
from tests.tolerances import DROP_IN, assert_accurate, relative_error

LIBRARY: dict[str, Cell] = {name: known(getattr(library, name)) for name in library.__all__}
names = pytest.mark.parametrize("name", LIBRARY)
SHAPES = (
    Shape(steps=4, batch=3, hidden=7, directions=2, lengths=True, resets=True),
    Shape(steps=4, batch=2, hidden=5, resets=True, reverse=True),
    Shape(steps=4, batch=2, hidden=5, bias=False, lengths=True),
    Shape(steps=3, batch=2, hidden=5, saturated=True),
)
"""Of fewer units the variance that some cells divide by may be nearly 0, and errors are what chance makes of it."""


def layer_of(name: str, shape: Shape) -> Layer:
    return any_layer(LIBRARY[name], shape)


def from_zeros(layer: Layer) -> Layer:
    return replace(layer, states0=[torch.zeros_like(state) for state in layer.states0])


def by_loop(name: str, layer: Layer, dtype: torch.dtype, grads: tuple[list[Tensor], list[Tensor]]) -> dict[str, Tensor]:
    """What `random_layers.compute` gives, by the loop."""
    layer = cast(layer, dtype)
    output, finals = loop(STEPS[name], layer)
    named = parameters(layer)
    pairs = zip([output, *finals], [d.to(dtype) for group in grads for d in group], strict=True)
    flowing = [(y, d) for y, d in pairs if y.requires_grad]  # sLSTM's m may have no gradient
    outputs, arriving = zip(*flowing, strict=True)
    gradients = torch.autograd.grad(outputs, [*named.values()], arriving, materialize_grads=True)
    values = {"output": output, **{f"final[{i}]": final for i, final in enumerate(finals)}}
    return values | {f"d {key}": d for key, d in zip(named, gradients, strict=True)}


def assert_is_its_paper(name: str, layer: Layer) -> None:
    """In values and all gradients."""
    grads = cotangents(layer)
    got, expected = compute(layer, torch.float64, "reference", grads), by_loop(name, layer, torch.float64, grads)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert value.isfinite().all(), key
        assert relative_error(got[key], value) < DROP_IN, key
    truth = by_loop(name, rounded(layer, torch.float32), torch.float64, grads)
    single = by_loop(name, layer, torch.float32, grads)
    for key, value in compute(layer, torch.float32, "reference", grads).items():
        assert_accurate(f"{name}, {key}", value, truth[key], single[key])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@names
def test_a_cell_is_its_papers(name: str, shape: Shape) -> None:
    assert_is_its_paper(name, layer_of(name, shape))


@names
def test_a_cell_is_its_papers_from_zeros(name: str) -> None:
    """As without hx."""
    assert_is_its_paper(name, from_zeros(layer_of(name, SHAPES[0])))


@names
def test_gradients_are_those_of_small_differences(name: str) -> None:
    layer = cast(layer_of(name, Shape(steps=3, batch=2, inputs=2, hidden=2, directions=2)), torch.float64)
    outline, tensors = layer.parts()

    def results(*given: Tensor) -> tuple[Tensor, ...]:
        result = ops.forward(outline.layer(given), history=True, gates=True, backend="reference")
        if name == "slstm":  # what does not depend on the m' that is taken
            h, c, n, m = result.finals
            return result.states[0], h, c / n, n.log() + m
        return result.states[0], *result.finals

    assert gradcheck(results, tensors, fast_mode=True)


@names
def test_nothing_overflows(name: str) -> None:
    """With gates far beyond those at which exp(x) has a value in float32, from zeros and after resets."""
    layer = from_zeros(layer_of(name, Shape(steps=4, batch=4, hidden=6, resets=True)))
    layer = replace(layer, w_ih=[300 * w for w in layer.w_ih])
    for key, value in compute(layer, torch.float32, "reference", cotangents(layer)).items():
        assert value.isfinite().all(), key


def test_slstms_output_is_that_without_a_stabiliser() -> None:
    """The paper's equations before it adds m: from zeros, and from states at whose m nothing is to be multiplied."""

    def step(x: Tensor, u: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        _, c, n, m = states
        i, f, z, o = (x + u).chunk(4)
        c, n = torch.sigmoid(f) * c + i.exp() * z.tanh(), torch.sigmoid(f) * n + i.exp()
        return torch.sigmoid(o) * c / n, c, n, m

    layer = layer_of("slstm", SHAPES[0])
    for one in (from_zeros(layer), replace(layer, states0=[*layer.states0[:3], torch.zeros_like(layer.states0[3])])):
        got = ops.forward(one, history=True, gates=False, backend="reference")
        output, (h, c, n, _) = loop(step, one)
        torch.testing.assert_close(got.states[0], output)
        scale = got.finals[3].exp()
        for final, expected in zip(got.finals, (h, c / scale, n / scale), strict=False):
            torch.testing.assert_close(final, expected)


def test_slstms_first_step_has_the_whole_of_what_it_reads() -> None:
    """Whatever the input gate is, since the memory was empty."""
    layer = from_zeros(layer_of("slstm", Shape(steps=1, hidden=4)))
    for closed in (-1000.0, 1000.0):
        layer.biases[0][:4] = closed
        x = layer.x[0] @ layer.w_ih[0].T + layer.biases[0] + layer.biases[1]
        _, _, z, o = x.chunk(4, -1)
        for dtype in (torch.float64, torch.float32):
            (output, *_), _, _ = ops.forward(cast(layer, dtype), history=True, gates=False, backend="reference")
            torch.testing.assert_close(output[0].double(), torch.sigmoid(o) * z.tanh(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["zoneout_lstm", "zoneout_gru"])
def test_without_zoneout_they_are_torchs(name: str) -> None:
    layer = layer_of(name, Shape())
    result = ops.forward(
        replace(layer, inputs=[torch.zeros_like(keep) for keep in layer.inputs]),
        history=True,
        gates=False,
        backend="reference",
    )
    module: Any = getattr(torch.nn, name.removeprefix("zoneout_").upper())(4, 6, dtype=torch.float64)
    weights = (layer.w_ih[0], layer.w_hh[0][0], *layer.biases)
    for parameter, weight in zip(module.parameters(), weights, strict=True):
        parameter.data = weight
    hx = tuple(layer.states0) if name == "zoneout_lstm" else layer.states0[0]
    torch.testing.assert_close(result.states[0], module(layer.x, hx)[0].detach())
    kept = ops.forward(
        replace(layer, inputs=[torch.ones_like(keep) for keep in layer.inputs]),
        history=True,
        gates=False,
        backend="reference",
    )
    for state, state0 in zip(kept.states, layer.states0, strict=True):
        assert state.equal(state0.expand_as(state))


@names
def test_a_docstring_says_what_the_contract_says(name: str) -> None:
    cell, text = LIBRARY[name], str(getattr(library, name).__doc__)
    assert re.match(r".+: .+ \(\d{4}\).*\.$", text.partition("\n")[0])
    doc = " ".join(text.split())
    shares = "x and u" if cell.u_gates == cell.x_gates else "x"
    assert re.search(rf"Gates of {shares}: {', '.join(cell.x_gates)}[.;,]", doc)
    if shares == "x":
        assert f"Of u: {', '.join(cell.u_gates) or 'none'}" in doc
    assert len(cell.states) == 1 or f"States: {', '.join(cell.states)}." in doc
    assert not cell.parameters or f"Parameters: {', '.join(cell.parameters)} (H,)" in doc
    assert not cell.inputs or f"Inputs of a step: {' and '.join(cell.inputs)}," in doc
    assert f"Recurrent({name}, 3, 4" in "".join(
        example.source for example in doctest.DocTestParser().get_examples(text)
    )


def test_the_library_is_found_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert STEPS.keys() == LIBRARY.keys()
    assert cells.__getattr__("library") is library
    assert "library" in dir(cells)
    with pytest.raises(AttributeError, match="no attribute 'librarian'"):
        _ = cells.librarian
    for name, cell in LIBRARY.items():
        assert cell.name == name
    assert main(["cell", "fastrnn.cells.library:star"]) == 0
    assert capsys.readouterr().out.startswith("star: states h\n")


def test_its_code_is_a_file_as_a_users_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That of the built-in cells is in the repository."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    functions: list[Any] = [vars(cell)["__wrapped__"] for cell in (library.star, gru)]
    files = [Path(fastrnn.cell(function).step.__code__.co_filename) for function in functions]
    assert [file.is_file() for file in files] == [True, False]
