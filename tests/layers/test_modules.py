"""Modules as objects: constructors, attributes, parameters, saving and loading, copies, devices and dtypes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from tests.torch_parity import (
    HIDDEN,
    INPUT,
    LAYERS,
    assert_close,
    assert_same_error,
    cells,
    classes,
    layers,
    modules,
    pair,
    random,
    tensors,
)

LAYER_OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 2, "dropout": 0.5},
    {"num_layers": 2, "dropout": 1},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "bias": False},
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16},
    {"device": "meta"},
]
CELL_OPTIONS: list[dict[str, Any]] = [{}, {"bias": False}, {"dtype": torch.float64}, {"device": "meta"}]
CONFIGURATIONS = [
    pytest.param(kind, options, id=f"{kind}-{'-'.join(map(str, options)) or 'default'}")
    for kinds, choices in ((LAYERS, LAYER_OPTIONS), (("RNN_TANH_CELL", "GRU_CELL", "LSTM_CELL"), CELL_OPTIONS))
    for kind in kinds
    for options in choices
] + [
    pytest.param("LSTM", {"proj_size": 2}, id="LSTM-proj_size"),
    pytest.param("LSTM", {"proj_size": 2, "num_layers": 2, "bidirectional": True, "bias": False}, id="LSTM-proj_all"),
]
configurations = pytest.mark.parametrize(("kind", "options"), CONFIGURATIONS)


def build(kind: str, options: dict[str, Any], seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """fastrnn's module and torch's, each constructed from the same seed."""
    ours, theirs, kind_options = classes(kind)
    torch.manual_seed(seed)
    our_module = ours(INPUT, HIDDEN, **kind_options, **options)
    torch.manual_seed(seed)
    return our_module, theirs(INPUT, HIDDEN, **kind_options, **options)


def public_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


OWN = {"num_heads": 1, "recurrent_dropout": 0.0, "backend": None, "recompute": False}
"""What layers have beside torch's attributes."""


@configurations
def test_attributes_are_torchs(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = build(kind, options)
    own = OWN if kind in LAYERS else {"backend": None}
    assert public_attributes(ours) == public_attributes(theirs) | own


@configurations
def test_parameters_have_torchs_names_order_and_initial_values(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = build(kind, options)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.shape, a.dtype, a.device, a.requires_grad) == (b.shape, b.dtype, b.device, b.requires_grad)
        assert a.is_meta or torch.equal(a, b)


@configurations
def test_repr_is_torchs(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = build(kind, options)
    assert repr(ours) == repr(theirs)


@configurations
def test_state_dict_loads_both_ways(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = build(kind, options)
    donor, _ = build(kind, options, seed=1)
    assert str(theirs.load_state_dict(donor.state_dict(), strict=True)) == "<All keys matched successfully>"
    assert str(ours.load_state_dict(theirs.state_dict(), strict=True)) == "<All keys matched successfully>"
    if options.get("device") != "meta":
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), donor.parameters(), strict=True))


@layers
def test_all_weights_and_training_flag_are_torchs(kind: str) -> None:
    ours, theirs = build(kind, {"num_layers": 2, "bidirectional": True})
    assert [len(weights) for weights in ours.all_weights] == [len(weights) for weights in theirs.all_weights]
    flat = [weight for weights in ours.all_weights for weight in weights]
    assert all(a is b for a, b in zip(flat, ours.parameters(), strict=True))
    assert ours.training
    assert not ours.eval().training


@layers
def test_is_an_rnn_base_and_flatten_parameters_changes_nothing(kind: str) -> None:
    ours, _ = build(kind, {})
    before = [parameter.data_ptr() for parameter in ours.parameters()]
    assert isinstance(ours, nn.RNNBase)
    assert ours.flatten_parameters() is None
    assert [parameter.data_ptr() for parameter in ours.parameters()] == before


@layers
def test_a_copys_parameters_are_brought_into_one_piece(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a deep copy lie apart. A shallow one has the original's, which must not be changed for nothing."""
    ours, _ = build(kind, {})
    piece = torch.cat([parameter.detach().flatten() for parameter in ours.parameters()])
    parts = iter(piece.split([parameter.numel() for parameter in ours.parameters()]))
    for parameter in ours.parameters():
        parameter.data = next(parts).view(parameter.shape)
    flattened: list[nn.Module] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: flattened.append(self))
    copy.copy(ours)
    assert flattened == []
    deep = copy.deepcopy(ours)
    assert flattened == [deep]


@layers
def test_positional_arguments_come_in_torchs_order(kind: str) -> None:
    ours, theirs, options = classes(kind)
    nonlinearity = tuple(options.values())
    # input_size, hidden_size, num_layers, nonlinearity (RNN alone), bias, batch_first, dropout, bidirectional
    arguments = (4, 6, 2, *nonlinearity, False, True, 0.25, True)
    assert public_attributes(ours(*arguments)) == public_attributes(theirs(*arguments)) | OWN


def test_lstm_takes_proj_size_device_and_dtype_by_position() -> None:
    arguments = (4, 6, 1, True, False, 0.0, False, 2, "meta", torch.float64)
    ours, theirs = fastrnn.LSTM(*arguments), nn.LSTM(*arguments)
    assert repr(ours) == repr(theirs)
    assert [(p.device, p.dtype) for p in ours.parameters()] == [(p.device, p.dtype) for p in theirs.parameters()]


@cells
def test_cells_positional_arguments_come_in_torchs_order(kind: str) -> None:
    ours, theirs, options = classes(kind)
    arguments = (4, 6, False, *options.values(), "meta", torch.float64)
    assert repr(ours(*arguments)) == repr(theirs(*arguments))
    assert ours(*arguments).weight_ih.dtype == torch.float64


WRONG_LAYER_ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "no sizes": ((), {}),
    "no hidden size": ((4,), {}),
    "unknown keyword": ((4, 6), {"hidden": 1}),
    "dropout above one": ((4, 6), {"dropout": 1.5}),
    "negative dropout": ((4, 6), {"dropout": -0.1}),
    "dropout as bool": ((4, 6), {"dropout": True}),
    "dropout as string": ((4, 6), {"dropout": "a lot"}),
    "bias as int": ((4, 6), {"bias": 1}),
    "bias as None": ((4, 6), {"bias": None}),
    "batch_first as int": ((4, 6), {"batch_first": 1}),
    "input size as float": ((4.0, 6), {}),
    "input size zero": ((0, 6), {}),
    "input size negative": ((-1, 6), {}),
    "hidden size as string": ((4, "6"), {}),
    "hidden size zero": ((4, 0), {}),
    "no layers": ((4, 6), {"num_layers": 0}),
    "negative proj_size": ((4, 6), {"proj_size": -1}),
    "proj_size of hidden size": ((4, 6), {"proj_size": 6}),
    "proj_size of zero": ((4, 6), {"proj_size": 0}),
    "unknown nonlinearity": ((4, 6), {"nonlinearity": "sigmoid"}),
    "unknown nonlinearity by position": ((4, 6, 1, "sigmoid"), {}),
    "nonlinearity twice": ((4, 6, 1, "tanh"), {"nonlinearity": "tanh"}),
    "integer dtype": ((4, 6), {"dtype": torch.int64}),
    "unknown device": ((4, 6), {"device": "abacus"}),
}


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("mistake", WRONG_LAYER_ARGUMENTS)
def test_constructor_raises_as_torch(name: str, mistake: str) -> None:
    args, kwargs = WRONG_LAYER_ARGUMENTS[mistake]
    if (name, mistake) == ("LSTM", "proj_size of zero"):
        pytest.skip("valid for LSTM")
    assert_same_error(lambda: getattr(fastrnn, name)(*args, **kwargs), lambda: getattr(nn, name)(*args, **kwargs))


WRONG_CELL_ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "no sizes": ((), {}),
    "input size as string": (("4", 6), {}),
    "negative hidden size": ((4, -6), {}),
    "unknown keyword": ((4, 6), {"num_layers": 1}),
    "integer dtype": ((4, 6), {"dtype": torch.int64}),
}


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("mistake", WRONG_CELL_ARGUMENTS)
def test_cell_constructor_raises_as_torch(name: str, mistake: str) -> None:
    args, kwargs = WRONG_CELL_ARGUMENTS[mistake]
    assert_same_error(lambda: getattr(fastrnn, name)(*args, **kwargs), lambda: getattr(nn, name)(*args, **kwargs))


@layers
def test_dropout_of_a_single_layer_warns_as_torch(kind: str) -> None:
    ours, theirs, options = classes(kind)
    with pytest.warns(UserWarning, match="dropout option adds dropout") as their_warning:
        theirs(4, 6, dropout=0.5, **options)
    with pytest.warns(UserWarning, match="dropout option adds dropout") as our_warning:
        ours(4, 6, dropout=0.5, **options)
    assert [str(w.message) for w in our_warning] == [str(w.message) for w in their_warning]


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def through_a_file(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@modules
@pytest.mark.parametrize("copied", [through_pickle, through_a_file, copy.deepcopy, copy.copy])
def test_copies_compute_the_same(kind: str, copied: Any) -> None:
    ours, _ = pair(kind, backend="reference")
    other = copied(ours)
    x = random(3, INPUT)
    assert_close(other(x), ours(x), tolerance=0)
    assert (repr(other), other.backend) == (repr(ours), "reference")


def test_recompute_survives_pickling_and_shows_in_repr() -> None:
    module = fastrnn.LSTM(4, 6, recompute=True, backend="reference")
    assert repr(module) == "LSTM(4, 6, backend='reference', recompute=True)"
    assert repr(through_pickle(module)) == repr(module)
    assert through_pickle(module).recompute


def test_backend_of_a_cell_shows_in_repr() -> None:
    assert repr(fastrnn.GRUCell(4, 6, backend="reference")) == "GRUCell(4, 6, backend='reference')"


@modules
def test_modules_pickled_without_fastrnns_attributes_load(kind: str) -> None:
    ours, theirs = pair(kind)
    state = {name: value for name, value in ours.__getstate__().items() if name not in OWN}
    old = type(ours).__new__(type(ours))
    old.__setstate__(copy.deepcopy(state))
    x = random(3, INPUT)
    assert_close(old(x), theirs(x))
    assert repr(old) == repr(theirs)


@modules
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_converted_modules_compute_in_their_dtype(kind: str, dtype: torch.dtype) -> None:
    ours = pair(kind)[0].to(dtype)
    assert {output.dtype for output in tensors(ours(random(3, INPUT, dtype=dtype)))} == {dtype}


@modules
def test_half_and_double_convert_all_parameters(kind: str) -> None:
    ours, _ = pair(kind)
    assert {parameter.dtype for parameter in ours.half().parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in ours.double().parameters()} == {torch.float64}


@modules
def test_meta_modules_give_meta_results_of_torchs_shapes(kind: str) -> None:
    ours, theirs = pair(kind, device="meta", backend="reference")
    x = torch.empty(3, INPUT, dtype=torch.float64, device="meta")
    for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        assert (a.device, a.shape, a.dtype) == (b.device, b.shape, b.dtype)


@modules
def test_to_empty_then_loading_restores_a_meta_module(kind: str) -> None:
    ours, theirs = pair(kind)
    ours, donor = ours.to("meta").to_empty(device="cpu"), theirs.state_dict()
    ours.load_state_dict(donor)
    x = random(3, INPUT)
    assert_close(ours(x), theirs(x))


@modules
def test_reset_parameters_draws_torchs_values(kind: str) -> None:
    ours, theirs = pair(kind)
    torch.manual_seed(5)
    ours.reset_parameters()
    torch.manual_seed(5)
    theirs.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@modules
def test_constructor_rejects_an_unknown_backend(kind: str) -> None:
    ours, _, options = classes(kind)
    with pytest.raises(ValueError, match=r"^backend: unknown backend 'cudnn'; expected one of 'auto', 'numba'"):
        ours(4, 6, backend="cudnn", **options)
