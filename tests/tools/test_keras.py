"""Keras' layers and fastrnn's modules with the same weights compute the same; Keras runs on torch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrnn
import fastrnn.keras
from fastrnn.keras import from_keras, get_weights, load_weights, to_keras

TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 6
TOLERANCE = 1e-5

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "GRU": ("GRU", {}),
    "RNN_TANH": ("SimpleRNN", {}),
    "RNN_RELU": ("SimpleRNN", {"activation": "relu", "use_bias": False}),
}
kinds = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])


@pytest.fixture(scope="module", autouse=True)
def keras() -> Iterator[ModuleType]:
    """Keras, not imported before it is needed, since that takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        module = pytest.importorskip("keras")
        if module.backend.backend() != "torch":
            pytest.skip("Keras was imported with another backend")
        yield module


def make(keras: ModuleType, kind: str, bidirectional: bool = False, size: int = INPUT, **options: Any) -> Any:
    """A built layer of which every weight is random, biases too."""
    name, kind_options = KINDS[kind]
    layer = getattr(keras.layers, name)(HIDDEN, **kind_options, **options)
    if bidirectional:
        layer = keras.layers.Bidirectional(layer)
    layer.build((None, None, size))
    generator = np.random.default_rng(0)
    layer.set_weights([generator.normal(0, 0.4, array.shape).astype(np.float32) for array in layer.get_weights()])
    return layer


def called(layer: Any, *args: Any, **options: Any) -> list[Tensor]:
    """What a Keras layer returns."""
    with torch.no_grad():
        results = layer(*args, **options)
    return [result.cpu() for result in (results if isinstance(results, (list, tuple)) else [results])]


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected.detach(), atol=TOLERANCE, rtol=0)


@kinds
@both
def test_outputs_and_states(keras: ModuleType, kind: str, bidirectional: bool) -> None:
    layer = make(keras, kind, bidirectional, return_sequences=True, return_state=True)
    x = torch.randn(BATCH, TIME, INPUT)
    before = [torch.randn(BATCH, HIDDEN) for _ in range((1 + bidirectional) * (1 + (kind == "LSTM")))]
    expected, *states = called(layer, x, initial_state=before)
    if kind == "LSTM":
        hx = (torch.stack(before[::2]), torch.stack(before[1::2]))
        output, (hn, cn) = from_keras(layer)(x, hx)
        assert_close(cn, torch.stack(states[1::2]))
    else:
        output, hn = from_keras(layer)(x, torch.stack(before))
    assert_close(output, expected)
    assert_close(hn, torch.stack(states[:: 1 + (kind == "LSTM")]))


@kinds
@both
def test_weights_come_back_exactly(keras: ModuleType, kind: str, bidirectional: bool) -> None:
    layer = make(keras, kind, bidirectional)
    module = from_keras(layer)
    [arrays] = get_weights(module)
    [again] = to_keras(module)
    for given, array, built in zip(layer.get_weights(), arrays, again.get_weights(), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, given)
        np.testing.assert_array_equal(built, given)


@kinds
def test_the_last_output_alone(keras: ModuleType, kind: str) -> None:
    x = torch.randn(BATCH, TIME, INPUT)
    layer = make(keras, kind)
    assert_close(from_keras(layer)(x)[0][:, -1], called(layer, x)[0])
    layer = make(keras, kind, bidirectional=True)
    states = from_keras(layer)(x)[1]
    hn = states[0] if kind == "LSTM" else states
    assert_close(torch.cat((hn[-2], hn[-1]), -1), called(layer, x)[0])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("library", [fastrnn, nn], ids=["fastrnn", "torch"])
def test_stacks_to_keras_and_back(keras: ModuleType, name: str, library: Any) -> None:
    module = getattr(library, name)(INPUT, HIDDEN, num_layers=2, batch_first=True, bidirectional=True)
    stack = to_keras(module)
    x = torch.randn(BATCH, TIME, INPUT)
    assert_close(called(keras.Sequential(stack), x)[0], module(x)[0])
    again = from_keras(stack)
    assert isinstance(again, getattr(fastrnn, name))
    assert_close(again(x)[0], module(x)[0])
    [_, last] = to_keras(module, return_sequences=False)
    assert not last.forward_layer.return_sequences


def test_masks_are_lengths(keras: ModuleType) -> None:
    layer = make(keras, "LSTM", bidirectional=True, return_sequences=True)
    x, lengths = torch.randn(BATCH, TIME, INPUT), torch.tensor([TIME, 2, 3])
    mask = torch.arange(TIME) < lengths[:, None]
    assert_close(from_keras(layer)(x, lengths=lengths)[0], called(layer, x, mask=mask)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    gru = fastrnn.GRU(INPUT, HIDDEN, dtype=dtype)
    again = from_keras(to_keras(gru))
    for got, expected in zip(again.parameters(), gru.parameters(), strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, expected)


def test_loading_copies(keras: ModuleType) -> None:
    layer, module = make(keras, "GRU"), fastrnn.GRU(INPUT, HIDDEN, dtype=torch.float64)
    parameters = list(module.parameters())
    load_weights(module, layer)
    assert [id(parameter) for parameter in module.parameters()] == [id(parameter) for parameter in parameters]
    x = torch.randn(BATCH, TIME, INPUT)
    expected = called(layer, x)[0]
    layer.set_weights([np.zeros_like(array) for array in layer.get_weights()])
    assert_close(module(x.transpose(0, 1).double())[0][-1].float(), expected)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "not built": (lambda keras: keras.layers.LSTM(HIDDEN), "the layer must be built"),
    "reset before": (lambda keras: make(keras, "GRU", reset_after=False), "reset_after must be True"),
    "activation": (lambda keras: make(keras, "LSTM", activation="relu"), "activation must be tanh, got relu"),
    "linear": (lambda keras: make(keras, "GRU", activation=None), "activation must be tanh, got linear"),
    "own activation": (lambda keras: make(keras, "GRU", activation=torch.tanh), r"activation must be tanh, got .*tanh"),
    "sigmoid": (
        lambda keras: make(keras, "RNN_TANH", activation="sigmoid"),
        "activation must be tanh or relu, got sigmoid",
    ),
    "recurrent activation": (
        lambda keras: make(keras, "GRU", recurrent_activation="hard_sigmoid"),
        "recurrent_activation must be sigmoid, got hard_sigmoid",
    ),
    "backwards": (lambda keras: make(keras, "GRU", go_backwards=True), r"give the module input.flip\(1\)"),
    "merged": (
        lambda keras: keras.layers.Bidirectional(make(keras, "GRU"), merge_mode="sum"),
        "merge_mode must be 'concat', as modules have it, got 'sum'",
    ),
    "one not built": (
        lambda keras: [make(keras, "GRU", return_sequences=True), keras.layers.GRU(HIDDEN)],
        "the layer must be built",
    ),
    "kinds": (
        lambda keras: [make(keras, "GRU", return_sequences=True), make(keras, "LSTM", size=HIDDEN)],
        r"one kind, got GRU \(tanh\) of 6 units and LSTM \(tanh\) of 6 units",
    ),
    "sequences": (
        lambda keras: [make(keras, "GRU"), make(keras, "GRU", size=HIDDEN)],
        "return_sequences must be True for all layers but the last",
    ),
    "none": (lambda keras: [], "there must be at least one layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_modules_do_not_compute_is_refused(keras: ModuleType, case: str) -> None:
    layers, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        from_keras(layers(keras))


def test_stateful_layers_are_refused(keras: ModuleType) -> None:
    layer = keras.layers.LSTM(HIDDEN, stateful=True)
    layer.build((BATCH, None, INPUT))
    with pytest.raises(ValueError, match="stateful must be False"):
        from_keras(layer)


def test_directions_of_two_kinds_are_refused(keras: ModuleType) -> None:
    layers = keras.layers
    layer = layers.Bidirectional(layers.GRU(2), backward_layer=layers.GRU(2, use_bias=False, go_backwards=True))
    layer.build((None, None, INPUT))
    with pytest.raises(ValueError, match=r"got GRU \(tanh\) of 2 units and GRU \(tanh\) of 2 units without bias"):
        from_keras(layer)


def test_other_types_are_refused(keras: ModuleType) -> None:
    class LSTM(keras.layers.LSTM):  # type: ignore[misc,name-defined]
        """May compute anything under Keras' name."""

    class Bidirectional(keras.layers.Bidirectional):  # type: ignore[misc,name-defined]
        pass

    own = (LSTM(3), Bidirectional(keras.layers.LSTM(3)))
    for layer in (keras.layers.Dense(3), keras.layers.RNN(keras.layers.LSTMCell(3)), nn.LSTM(3, 4), None, *own):
        with pytest.raises(TypeError, match="expected one of Keras' LSTM, GRU, SimpleRNN or Bidirectional of one, got"):
            from_keras(layer)
    for module in (fastrnn.LSTMCell(3, 4), nn.Linear(3, 4)):
        with pytest.raises(TypeError, match=r"expected RNN, GRU or LSTM of fastrnn or torch\.nn, got"):
            to_keras(module)
    with pytest.raises(ValueError, match="proj_size must be 0, got 2"):
        get_weights(fastrnn.LSTM(3, 4, proj_size=2))
    with pytest.raises(ValueError, match=r"no heads, num_heads must be 1, got 2: fastrnn\.heads\.dense\(module\)"):
        to_keras(fastrnn.GRU(3, 4, num_heads=2))


def test_a_refused_load_changes_nothing(keras: ModuleType) -> None:
    lstm = make(keras, "LSTM", return_sequences=True)
    wider = make(keras, "LSTM", size=HIDDEN + 1)
    normed = nn.utils.parametrizations.weight_norm(fastrnn.LSTM(INPUT, HIDDEN), "weight_hh_l0")
    cases: list[tuple[nn.RNNBase, Any, str]] = [
        (fastrnn.LSTM(INPUT, HIDDEN, num_layers=2), lstm, "as many layers as the module has, 2"),
        (fastrnn.LSTM(INPUT, HIDDEN, num_layers=2), [lstm, wider], r"weight_ih_l1 must be \(24, 7\), got \(24, 6\)"),
        (fastrnn.LSTM(INPUT, HIDDEN, bias=False), lstm, "the layer is .* of 6 units, the module .* without bias"),
        (fastrnn.GRU(INPUT, HIDDEN), lstm, r"the layer is LSTM \(tanh\) .*, the module GRU"),
        (normed, lstm, "weight_hh_l0 is not a parameter but computed from others"),
    ]
    for module, layers, message in cases:
        before = [parameter.clone() for parameter in module.parameters()]
        with pytest.raises(ValueError, match=message):
            load_weights(module, layers)
        assert all(map(torch.equal, module.parameters(), before))


def warned(call: Callable[[], Any]) -> list[str]:
    """What `call` warns of, all of it said to be of this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        call()
    assert {warning.filename for warning in caught} == {__file__}
    return [str(warning.message) for warning in caught]


def test_dropout_is_warned_of(keras: ModuleType) -> None:
    layer = make(keras, "LSTM", bidirectional=True, dropout=0.5)
    messages = warned(lambda: from_keras(layer))
    assert len(messages) == 2
    assert all("dropout=0.5 and recurrent_dropout=0.0 act in training only" in message for message in messages)
    gru = fastrnn.GRU(INPUT, HIDDEN, num_layers=2, dropout=0.5, recurrent_dropout=0.25)
    assert warned(lambda: to_keras(gru)) == [
        "dropout=0.5 between layers is not carried over to Keras",
        "recurrent_dropout=0.25 acts in training only and is not carried over to Keras",
    ]


@kinds
def test_recurrent_dropout_has_keras_place(keras: ModuleType, kind: str) -> None:
    """With one mask for all gates."""
    layer = make(keras, kind, recurrent_dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not carried over
        module = from_keras(layer)
    module.recurrent_dropout = 0.5
    x = torch.randn(BATCH, TIME, INPUT)
    torch.manual_seed(0)
    output, _ = module(x)
    torch.manual_seed(0)
    mask = F.dropout(torch.ones(BATCH, HIDDEN), 0.5)
    cell, states = layer.cell, [torch.zeros(BATCH, HIDDEN)] * (1 + (kind == "LSTM"))
    gates = getattr(cell, "dropout_mask_count", None)
    cell._recurrent_dropout_mask = [mask] * gates if gates else mask
    for t in range(TIME):
        with torch.no_grad():
            h, states = cell(x[:, t], states, training=True)
        assert_close(output[:, t], h)


def test_without_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match=r'to_keras needs Keras 3, pip install "fastrnn\[keras\]"'):
        to_keras(fastrnn.GRU(INPUT, HIDDEN))


def test_tied_parameters_take_no_different_weights(keras: ModuleType) -> None:
    module = fastrnn.LSTM(4, 4, 2, batch_first=True)
    module.weight_hh_l1 = module.weight_hh_l0
    before = module.weight_hh_l0.clone()
    with pytest.raises(ValueError, match="weight_hh_l1 is tied to another, whose weights differ"):
        load_weights(module, to_keras(fastrnn.LSTM(4, 4, 2, batch_first=True)))
    assert torch.equal(module.weight_hh_l0, before)
    load_weights(module, to_keras(module))


def test_biases_of_bfloat16_are_summed_in_float32() -> None:
    module = fastrnn.LSTM(3, 64).bfloat16()
    exact = module.bias_ih_l0.float() + module.bias_hh_l0.float()
    [[_, _, bias]] = get_weights(module)
    assert sorted(bias.tolist()) == sorted(exact.tolist())
