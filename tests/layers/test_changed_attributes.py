"""Attributes of a module that were changed after construction, before its first call or later: torch.nn's errors.

`test_errors.py` has the mistakes in a call. Here too fastrnn has messages of its own where torch's come by accident
from somewhere below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from tests.torch_parity import (
    BATCH,
    CELLS,
    HIDDEN,
    INPUT,
    TIME,
    assert_close,
    assert_same_error,
    initial_state,
    pair,
    random,
)


def plus(name: str, step: int) -> Callable[[Any], None]:
    return lambda module: setattr(module, name, getattr(module, name) + step)


def flipped(name: str) -> Callable[[Any], None]:
    return lambda module: setattr(module, name, not getattr(module, name))


CHANGES: dict[str, Callable[[Any], None]] = {
    "input_size": plus("input_size", 1),
    "more layers": plus("num_layers", 1),
    "fewer layers": plus("num_layers", -1),
    "bidirectional": flipped("bidirectional"),
    "bias": flipped("bias"),
    "proj_size": plus("proj_size", 1),
    "more units": plus("hidden_size", 1),
    "fewer units": plus("hidden_size", -1),
}
NO_HX = {name: change for name, change in CHANGES.items() if not name.endswith("units")}
"""Those that torch notices where no state is given; of hidden_size, a product complains somewhere below."""
SHAPES: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two": {"num_layers": 2},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "two, no bias": {"num_layers": 2, "bias": False},
}


def changed(kind: str, options: dict[str, Any], change: Any, *, warm: bool, stated: bool, grad: bool = False) -> Any:
    """A call of fastrnn's module and of torch's, some attribute of which was changed, maybe after calls."""
    modules = pair(kind, **options)
    x = random(*([BATCH] if kind in CELLS else [TIME, BATCH]), INPUT, dtype=options.get("dtype", torch.float64))
    hx = initial_state(kind, modules[0]) if stated else None
    for module in modules:
        with torch.set_grad_enabled(grad):
            for _ in range(2 if warm else 0):
                module(x, hx)
        change(module)

    def call(module: Any) -> Any:
        with torch.set_grad_enabled(grad):
            return module(x, hx)

    return [partial(call, module) for module in modules]


when = pytest.mark.parametrize("warm", [False, True], ids=["first", "repeated"])


@when
@pytest.mark.parametrize(
    ("change", "stated"),
    [pytest.param(change, False, id=name) for name, change in NO_HX.items()]
    + [pytest.param(change, True, id=f"{name}, hx") for name, change in CHANGES.items()],
)
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM"])
def test_attributes_that_were_changed_raise_as_torch(
    kind: str, options: dict[str, Any], change: Any, stated: bool, warm: bool
) -> None:
    assert_same_error(*changed(kind, options, change, warm=warm, stated=stated))
    if warm:
        assert_same_error(*changed(kind, options, change, warm=warm, stated=stated, grad=True))


@when
@pytest.mark.parametrize("options", [{"proj_size": 2}, {"proj_size": 2, "bias": False}, {}], ids=str)
@pytest.mark.parametrize(
    "change",
    [CHANGES["bidirectional"], CHANGES["bias"], lambda m: setattr(m, "proj_size", 0 if m.proj_size else 3)],
    ids=["bidirectional", "bias", "proj_size"],
)
def test_attributes_of_projections_that_were_changed_raise_as_torch(
    change: Any, options: dict[str, Any], warm: bool
) -> None:
    assert_same_error(*changed("LSTM", options, change, warm=warm, stated=False))
    assert_same_error(*changed("LSTM", options, change, warm=warm, stated=True))


@when
@pytest.mark.parametrize("step", [-1, 1])
@pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM"])
def test_another_number_of_units_is_named(kind: str, step: int, warm: bool) -> None:
    """torch: from a product below, which oneDNN's LSTM in float32 does not notice: it reads memory out of bounds."""
    for options in ({}, {"dtype": torch.float32}):
        ours, _ = changed(kind, options, plus("hidden_size", step), warm=warm, stated=False)
        with pytest.raises(RuntimeError, match=f"hidden_size={HIDDEN + step} .* not the sizes of the parameters"):
            ours()


@when
def test_no_change_of_an_lstm_in_float32_goes_unnoticed(warm: bool) -> None:
    """torch: no error for some, or one from below, because oneDNN looks at neither number nor shape of the weights."""
    for change in CHANGES.values():
        ours, _ = changed("LSTM", {"num_layers": 2, "dtype": torch.float32}, change, warm=warm, stated=False)
        with pytest.raises(RuntimeError, match=r"size|weights|number of RNN"):
            ours()


@pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM"])
def test_dropout_out_of_range_raises_as_torch(kind: str) -> None:
    def change(module: Any) -> None:
        module.dropout = 2.5

    assert_same_error(*changed(kind, {"num_layers": 2}, change, warm=True, stated=False))
    ours, theirs = changed(kind, {}, change, warm=True, stated=False)  # which has no use for it
    assert_close(ours(), theirs(), 1e-12)


@when
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_goes_by_its_weights(kind: str, warm: bool) -> None:
    for step in (-1, 1):
        assert_same_error(*changed(kind, {}, plus("hidden_size", step), warm=warm, stated=False))
        ours, theirs = changed(kind, {}, plus("hidden_size", step), warm=warm, stated=True)
        assert_close(ours(), theirs(), 1e-12)
        ours, theirs = changed(kind, {}, plus("input_size", step), warm=warm, stated=False)
        assert_close(ours(), theirs(), 1e-12)


def test_a_mode_that_is_none_of_rnns_raises_as_torch() -> None:
    assert_same_error(*changed("RNN_TANH", {}, lambda m: setattr(m, "mode", "LSTM"), warm=True, stated=False))


@when
@pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM"])
def test_sizes_that_changed_with_the_parameters_are_taken(kind: str, warm: bool) -> None:
    def shrink(module: Any) -> None:
        """To two units and three inputs."""
        gates = module.weight_hh_l0.shape[0] // HIDDEN
        rows = [gate * HIDDEN + unit for gate in range(gates) for unit in range(2)]
        for name, parameter in list(module.named_parameters()):
            columns = {"weight_ih_l0": 3, "weight_hh_l0": 2}.get(name)
            part = parameter.detach()[rows] if columns is None else parameter.detach()[rows, :columns]
            setattr(module, name, nn.Parameter(part.contiguous()))
        module.hidden_size, module.input_size = 2, 3

    modules = pair(kind)
    for module in modules:
        for _ in range(3 if warm else 0):
            module(random(TIME, BATCH, INPUT))
        shrink(module)
    x = random(TIME, BATCH, 3)
    for _ in range(3):
        assert_close(*(module(x) for module in modules), 1e-12)


@when
def test_parameters_are_those_that_flat_weights_names_names(warm: bool) -> None:
    """As in torch.nn, which goes by these names, and by `_all_weights` in `all_weights` alone."""
    ours, theirs = pair("GRU")
    x = random(TIME, BATCH, INPUT)
    with torch.no_grad():
        for module in (ours, theirs):
            for _ in range(3 if warm else 0):
                module(x)
            module._all_weights = [["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "bias_ih_l0"]]
        before = ours(x)
        assert_close(before, theirs(x), 1e-12)
        for module in (ours, theirs):
            module._flat_weights_names[2:] = "bias_hh_l0", "bias_ih_l0"
        for _ in range(3):
            assert_close(ours(x), theirs(x), 1e-12)
    assert not torch.equal(ours(x)[0], before[0])


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "RNNCell"])
def test_biases_that_a_cell_was_given_later_are_added(name: str) -> None:
    cell = getattr(fastrnn, name)(INPUT, HIDDEN, bias=False)
    theirs = getattr(nn, name)(INPUT, HIDDEN, bias=False)
    theirs.load_state_dict(cell.state_dict())
    x = torch.randn(BATCH, INPUT)
    with torch.no_grad():
        for _ in range(3):
            cell(x)
        for bias in ("bias_ih", "bias_hh"):
            values = nn.Parameter(torch.randn(len(cell.weight_hh)))
            setattr(cell, bias, values)
            setattr(theirs, bias, values)
        for _ in range(3):
            assert_close(cell(x), theirs(x), 2e-6)
