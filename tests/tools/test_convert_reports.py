"""accelerate and to_torch: what they say, what they leave as it is and why, and that all of it happens or nothing."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

import fastrnn
import fastrnn.heads
from fastrnn.convert import Change
from tests.tools.test_convert import silently
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, random, tensors


class OwnForward(nn.LSTM):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)


class OurOwn(fastrnn.GRU):
    pass


def parametrized_subclass() -> nn.Module:
    return parametrizations.weight_norm(OwnForward(INPUT, HIDDEN), "weight_hh_l0")


def replaced_forward() -> nn.Module:
    gru = nn.GRU(INPUT, HIDDEN)
    gru.forward = types.MethodType(lambda self, x: nn.GRU.forward(self, x), gru)  # type: ignore[method-assign]
    return gru


def uninitialised() -> nn.Module:
    gru = nn.GRU(INPUT, HIDDEN)
    gru.weight_hh_l0 = nn.UninitializedParameter()
    return gru


def with_a_tensor_subclass() -> nn.Module:
    cell = nn.GRUCell(INPUT, HIDDEN)
    cell.weight_hh = nn.Parameter(TwoTensor(cell.weight_hh.detach(), cell.weight_hh.detach()))
    return cell


def with_an_attribute(name: str) -> nn.Module:
    gru = nn.GRU(INPUT, HIDDEN)
    setattr(gru, name, "cudnn")
    return gru


def with_a_child(name: str) -> nn.Module:
    gru = nn.GRU(INPUT, HIDDEN)
    gru.add_module(name, nn.Linear(2, 2))
    return gru


def compiled_in_place() -> nn.Module:
    model = nn.Sequential(nn.GRU(INPUT, HIDDEN))
    model.compile(backend="eager")
    return model


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(INPUT, HIDDEN)), {nn.LSTM})


OWN_FORWARD = "a subclass of torch.nn.LSTM with a forward of its own: derive it from fastrnn.LSTM instead"
LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "subclass": (lambda: OwnForward(INPUT, HIDDEN), OWN_FORWARD),
    "parametrized subclass": (parametrized_subclass, OWN_FORWARD),
    "base class": (lambda: nn.RNNBase("LSTM", INPUT, HIDDEN), "of a class that the other library has not"),
    "forward of an instance": (replaced_forward, "its forward was replaced on the instance"),
    "uninitialised": (uninitialised, "its parameter weight_hh_l0 is not initialised yet"),
    "tensor subclass": (with_a_tensor_subclass, "its parameter weight_hh is a TwoTensor"),
    "complex": (lambda: nn.RNN(4, 5, dtype=torch.complex64), "its parameter weight_ih_l0 is complex64"),
    "float8": (lambda: nn.RNNCell(4, 5).to(torch.float8_e4m3fn), "its parameter weight_ih is float8_e4m3fn"),
    "attribute": (
        lambda: with_an_attribute("backend"),
        "its own attribute backend would be taken for one of fastrnn.GRU",
    ),
    "attribute of heads": (
        lambda: with_an_attribute("num_heads"),
        "its own attribute num_heads would be taken for one of fastrnn.GRU",
    ),
    "child": (lambda: with_a_child("_weights"), "its own attribute _weights would be taken for one of fastrnn.GRU"),
    "scripted": (lambda: torch.jit.script(nn.LSTM(INPUT, HIDDEN)), "TorchScript of LSTM"),
    "traced": (lambda: torch.jit.trace(nn.GRU(INPUT, HIDDEN), torch.zeros(TIME, INPUT)), "TorchScript of GRU"),
    "quantized": (quantized, "quantized"),
    "wrapped by compile": (
        lambda: torch.compile(nn.Sequential(nn.LSTMCell(INPUT, HIDDEN)), backend="eager"),
        "compiled: convert the model first, then compile it",
    ),
    "compiled in place": (compiled_in_place, "compiled: convert the model first, then compile it"),
    "fastrnn's": (lambda: fastrnn.GRU(INPUT, HIDDEN), "already"),
    "subclass of fastrnn's": (lambda: OurOwn(INPUT, HIDDEN), "already: a subclass of fastrnn.GRU"),
}


@pytest.mark.parametrize("why", LEFT)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_what_is_left_and_why(why: str) -> None:
    make, note = LEFT[why]
    layer = make()
    model = nn.Sequential(nn.GRU(INPUT, HIDDEN), layer)
    kinds = [type(module) for module in layer.modules()]
    done, left = silently(fastrnn.accelerate, model)
    assert (str(done), left.after, left.note) == ("0: torch.nn.GRU -> fastrnn.GRU", None, note)
    assert str(left).endswith(f" left ({note})")
    assert all(name.startswith("1") for name in left.names)
    assert [type(module) for module in layer.modules()] == kinds

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert fastrnn.accelerate(model) is model
    if note.startswith("already"):
        assert not said
    else:
        assert [(warning.filename, str(left) in str(warning.message)) for warning in said] == [(__file__, True)]


def test_what_is_shared_with_a_compiled_model_is_left() -> None:
    gru = nn.GRU(INPUT, HIDDEN)
    model = nn.ModuleList([gru, torch.compile(gru, backend="eager")])
    (change,) = silently(fastrnn.accelerate, model)
    assert str(change) == "0, 1._orig_mod: torch.nn.GRU left (compiled: convert the model first, then compile it)"


def test_a_model_without_recurrent_layers_is_warned_of() -> None:
    for convert in (fastrnn.accelerate, fastrnn.to_torch):
        model = nn.Sequential(nn.Linear(2, 2))
        with pytest.warns(UserWarning, match=rf"fastrnn.{convert.__name__}: the model has no recurrent layer") as said:
            assert convert(model) is model
        assert said[0].filename == __file__
        assert silently(convert, model) == []


def test_a_model_and_nothing_else() -> None:
    for convert in (fastrnn.accelerate, fastrnn.to_torch):
        with pytest.raises(TypeError, match=rf"^{convert.__name__}: model must be a torch.nn.Module, got OrderedDict$"):
            convert(nn.Linear(2, 2).state_dict())


def test_to_torch_says_which_options_are_lost() -> None:
    model = nn.Sequential(
        fastrnn.LSTM(INPUT, HIDDEN, proj_size=2, backend="reference", recompute=True),
        fastrnn.GRUCell(INPUT, HIDDEN, backend="numba"),
        fastrnn.GRU(INPUT, HIDDEN, recompute=True).prepack(),
        fastrnn.RNN(INPUT, HIDDEN),
        nn.GRU(INPUT, HIDDEN),
        OurOwn(INPUT, HIDDEN),
    ).double()
    expected, x = copy.deepcopy(model), random(TIME, BATCH, INPUT)
    with pytest.warns(UserWarning, match="fastrnn.to_torch") as said:
        fastrnn.to_torch(copy.deepcopy(model))
    lost = [
        "0: fastrnn.LSTM -> torch.nn.LSTM (without backend='reference' and recompute=True)",
        "1: fastrnn.GRUCell -> torch.nn.GRUCell (without backend='numba')",
        "2: fastrnn.GRU -> torch.nn.GRU (without recompute=True and prepacked=True)",
        f"5: {__name__}.OurOwn left (a subclass of fastrnn.GRU, whose methods would be lost)",
    ]
    assert str(said[0].message).split("\n  ")[1:] == lost
    lines = [str(change) for change in silently(fastrnn.to_torch, model)]
    assert lines == [*lost[:3], "3: fastrnn.RNN -> torch.nn.RNN", "4: torch.nn.GRU left (already)", lost[3]]
    assert not any({"num_heads", "backend", "recompute", "prepacked"} & vars(model[index]).keys() for index in range(5))
    assert_close(tensors(model[0](x)), tensors(expected[0](x)))
    with pytest.raises(TypeError, match="lengths"):
        model[2](x, lengths=torch.tensor([5, 2, 0]))


def test_layers_with_heads_stay_and_dense_ones_become_torchs() -> None:
    lstm, x = fastrnn.LSTM(INPUT, HIDDEN, num_heads=2, dtype=torch.float64), random(TIME, BATCH, INPUT)
    (change,) = silently(fastrnn.to_torch, lstm)
    why = "num_heads=2, and torch.nn has no heads: fastrnn.heads.dense(layer) can be converted"
    assert str(change) == f"the model itself: fastrnn.LSTM left ({why})"
    assert (type(lstm), lstm.num_heads) == (fastrnn.LSTM, 2)
    (change,) = silently(fastrnn.accelerate, lstm)
    assert change.note == "already"
    model = fastrnn.heads.dense(lstm)
    assert [str(change) for change in silently(fastrnn.to_torch, model)] == [
        "the model itself: fastrnn.LSTM -> torch.nn.LSTM"
    ]
    with fastrnn.use_backend("reference"):
        assert_close(tensors(model(x)), tensors(lstm(x)))
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        lstm.load_state_dict(model.state_dict())
    silently(fastrnn.accelerate, model)
    assert model.num_heads == 1


def test_on_the_way_to_torch_weights_are_brought_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU torch's layers warn at every call of weights that do not lie side by side."""
    called: list[nn.Module] = []
    monkeypatch.setattr(nn.LSTM, "flatten_parameters", lambda self: called.append(self))
    model = nn.Sequential(fastrnn.LSTM(INPUT, HIDDEN), fastrnn.LSTMCell(INPUT, HIDDEN))
    fastrnn.to_torch(model)
    assert called == [model[0]]


@pytest.mark.parametrize("direction", ["accelerate", "to_torch"])
def test_nothing_has_changed_where_something_raises(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = nn if direction == "accelerate" else fastrnn
    options = {} if direction == "accelerate" else {"backend": "reference"}
    normed = parametrizations.weight_norm(library.LSTM(INPUT, HIDDEN, **options), "weight_hh_l0")
    model = nn.Sequential(library.GRU(INPUT, HIDDEN, **options), normed, library.RNN(INPUT, HIDDEN, **options))
    before = [(type(layer), dict(vars(layer))) for layer in model]

    def unchanged() -> bool:
        return [(type(layer), dict(vars(layer))) for layer in model] == before

    def fail(change: Change | nn.Module) -> None:
        if "2" in getattr(change, "names", "2"):
            raise RuntimeError("no more")

    convert = getattr(fastrnn, direction)
    with pytest.raises(RuntimeError, match="no more"):
        convert(model, report=fail)
    assert unchanged()
    monkeypatch.setattr(fastrnn.RNN if direction == "accelerate" else nn.RNN, "flatten_parameters", fail)
    with pytest.raises(RuntimeError, match="no more"):
        convert(model)
    assert unchanged()
    monkeypatch.undo()
    silently(convert, model)
    assert not any(type(layer) is cls for layer, (cls, _) in zip(model, before, strict=True))
