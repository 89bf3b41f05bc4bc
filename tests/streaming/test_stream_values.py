"""Streams of every kind of module beside the module's loop over the whole sequence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastrnn
from fastrnn.cells import library
from tests.selection import exhaustive
from tests.streaming.streams import assert_computes, cell_of, in_chunks, make, make_cell, same

SHORT = ("lstm", "gru", "layer_norm_gru", "minlstm")
"""Two built-in cells, one with means over units, one without a product: a kernel takes some seconds to compile."""
KINDS = (*SHORT, *exhaustive("rnn_tanh", "rnn_relu", *(name for name in library.__all__ if name not in SHORT)))

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize(
    ("sizes", "batch", "steps"),
    [
        ((1, 1), 1, ()),
        ((1, 37), 1, (7, 1)),
        ((37, 1, 2), 3, (7,)),
        ((5, 9, 3), 1, ()),
        ((3, 37, 2), 3, (1, 7, 2)),
        ((40, 65), 17, (40, 3)),
        ((9, 130, 2), 2, (40,)),
    ],
)
@kinds
def test_a_stream_computes_what_its_module_does(
    kind: str, sizes: tuple[int, ...], batch: int, steps: tuple[int, ...]
) -> None:
    if kind.startswith("layer_norm") and sizes[1] == 1:
        pytest.skip("the mean of one unit leaves nothing")
    assert_computes(make(kind, *sizes), torch.randn(43 if 40 in steps else 12, batch, sizes[0]), steps)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"batch_first": True},
        {"bias": False, "batch_first": True, "num_layers": 2},
        {"num_layers": 3, "dropout": 0.5},
        {"num_heads": 3},
    ],
    ids=str,
)
@kinds
def test_options_of_modules(kind: str, options: dict[str, Any]) -> None:
    if "num_heads" in options and not cell_of(kind).u_gates:
        pytest.skip("no product to have heads")
    module = make(kind, 5, 33, **options)
    assert_computes(module, torch.randn(9, 9, 5), (4,))


@pytest.mark.parametrize("heads", [2, 3, 8])
@pytest.mark.parametrize("kind", ["lstm", *exhaustive("gru", "slstm", "zoneout_lstm")])
def test_heads_that_end_within_panels(kind: str, heads: int) -> None:
    assert_computes(make(kind, 7, heads * 11, num_heads=heads), torch.randn(9, 3, 7), (2,))


@pytest.mark.parametrize("hidden", [2, 37, 70])
@pytest.mark.parametrize("projected", [1, 17, 36])
@pytest.mark.parametrize("layers", [1, 2])
def test_projections(hidden: int, projected: int, layers: int) -> None:
    module = fastrnn.LSTM(6, hidden, layers, proj_size=min(projected, hidden - 1))
    assert_computes(module, torch.randn(9, 3, 6), (1, 5))


@kinds
def test_cells(kind: str) -> None:
    assert_computes(make_cell(kind, 5, 19), torch.randn(9, 3, 5))
    assert_computes(make_cell(kind, 5, 19, bias=False), torch.randn(9, 3, 5), (4,))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's, of its own kernel
@pytest.mark.parametrize(
    ("module", "hx"),
    [
        (nn.LSTM(5, 9, 2, batch_first=True), (torch.randn(2, 4, 9), torch.randn(2, 4, 9))),
        (nn.LSTM(5, 9, 2, proj_size=3), (torch.randn(2, 3, 3), torch.randn(2, 3, 9))),
        (nn.GRU(5, 9, bias=False), torch.randn(1, 3, 9)),
        (nn.LSTMCell(5, 9), (torch.randn(3, 9), torch.randn(3, 9))),
        (nn.GRUCell(5, 9), torch.randn(3, 9)),
        pytest.param(nn.RNN(5, 9, 3), torch.randn(3, 3, 9), marks=pytest.mark.exhaustive),
        pytest.param(nn.RNN(5, 9, nonlinearity="relu"), torch.randn(1, 3, 9), marks=pytest.mark.exhaustive),
        pytest.param(nn.RNNCell(5, 9), torch.randn(3, 9), marks=pytest.mark.exhaustive),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "hx",
)
def test_torchs_own_modules(module: nn.Module, hx: Any) -> None:
    kind, names, state = type(module), dir(module), {k: v.clone() for k, v in module.state_dict().items()}
    assert_computes(module, torch.randn(4, 3, 5), (3,) if isinstance(module, nn.RNNBase) else (), hx)
    assert type(module) is kind
    assert dir(module) == names
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
    assert module.training


@pytest.mark.parametrize("maker", [nn.LSTM, fastrnn.LSTM])
def test_parametrized_modules(maker: Any) -> None:
    module = maker(5, 9)
    parametrizations.weight_norm(module, "weight_hh_l0")
    parametrizations.weight_norm(module, "weight_ih_l0")
    plain = fastrnn.LSTM(5, 9)
    plain.load_state_dict({name: getattr(module, name) for name in plain.state_dict()})
    assert_computes(module, torch.randn(4, 3, 5), plain=plain)
    with fastrnn.stream(module) as stream, torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(2)
        assert stream.stale
        stream.update()
        assert not stream.stale
        x = torch.randn(3, 1, 5)
        assert same(in_chunks(stream, x), in_chunks(fastrnn.stream(module), x))


def test_a_module_in_training_is_taken_as_in_evaluation() -> None:
    plain = fastrnn.LSTM(5, 9, 2, dropout=0.5, recurrent_dropout=0.5)
    module = fastrnn.weight_drop(copy.deepcopy(plain), 0.5)
    assert_computes(module, torch.randn(4, 3, 5), plain=plain)
    with fastrnn.stream(module) as stream:
        assert not stream.stale
    assert all(inner.training for inner in module.modules())


@pytest.mark.parametrize("kind", ["lstm", *exhaustive("gru", "layer_norm_gru", "rnn_relu", "zoneout_lstm")])
@pytest.mark.parametrize("hidden", [1, 37, 256])
def test_rows_and_chunks_do_not_know_of_each_other(kind: str, hidden: int) -> None:
    """Nor of the batch or the number of steps, bitwise."""
    module, x = make(kind, 5, hidden, 2), torch.randn(17, 19, 5)
    with fastrnn.stream(module, batch=19, steps=17) as stream:
        together = stream(x).clone()
    for batch, steps in ((1, 1), (1, 17), (2, 5), (3, 17), (7, 2)):
        with fastrnn.stream(module, batch=batch, steps=steps) as stream:
            assert same(in_chunks(stream, x[:, 4 : 4 + batch], (steps,)), together[:, 4 : 4 + batch]), (batch, steps)
