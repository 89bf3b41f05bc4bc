"""Weights in 16 and 8 bits beside what they compute in plain PyTorch, and how far that is from float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastrnn
from tests.selection import exhaustive
from tests.streaming.emulation import emulated
from tests.streaming.streams import cell_of, in_chunks, make, same, steps_of
from tests.tolerances import FLOOR, relative_error

ROUNDINGS = {"float16": FLOOR[torch.float32], "int8": 2e-5}
"""Of int8 some numbers of 16 bits lie so near the middle of two that either is right: a hundredth of what 8 bits do."""

formats = pytest.mark.parametrize("weights", ["float16", "int8"])


@pytest.mark.parametrize(
    ("sizes", "options", "batch", "chunks"),
    [
        ((5, 37, 2), {}, 3, (7,)),
        ((1, 1), {}, 1, ()),
        ((40, 65), {"bias": False}, 17, (1, 5)),
        ((7, 64), {"proj_size": 33}, 2, (4,)),
        ((3, 300), {}, 1, ()),
    ],
    ids=str,
)
@formats
@pytest.mark.parametrize("kind", ["lstm", *exhaustive("gru", "rnn_relu", "rnn_tanh", "minlstm", "layer_norm_gru")])
def test_what_the_weights_compute(
    kind: str, weights: str, sizes: tuple[int, ...], options: dict[str, Any], batch: int, chunks: tuple[int, ...]
) -> None:
    if kind != "lstm" and "proj_size" in options:
        pytest.skip("an LSTM's")
    if kind == "layer_norm_gru" and sizes[1] == 1:
        pytest.skip("the mean of one unit leaves nothing")
    module, x = make(kind, *sizes, **options), torch.randn(23, batch, sizes[0])
    with fastrnn.stream(module, batch=batch, steps=max(chunks, default=1), weights=weights) as stream:
        output = in_chunks(stream, x, chunks)
    truth = emulated(module, cell_of(kind), x, weights)
    single = emulated(module, cell_of(kind), x, weights, torch.float32)
    assert relative_error(output, truth) <= 2 * relative_error(single, truth) + ROUNDINGS[weights]


@pytest.mark.parametrize(("weights", "most"), [("float16", 5e-4), ("int8", 6e-3)])
@pytest.mark.parametrize("sizes", [(128, 256), *exhaustive((256, 256, 2), (64, 512))])
@pytest.mark.parametrize("kind", ["lstm", *exhaustive("gru")])
def test_the_difference_after_1000_steps(kind: str, weights: str, most: float, sizes: tuple[int, ...]) -> None:
    module, x = make(kind, *sizes), torch.randn(1000, 1, sizes[0])
    with fastrnn.stream(module, weights=weights, steps=1000) as stream:
        output, told = stream(x).clone(), stream.error(x)
    exact, _ = steps_of(module.double(), x.double())
    assert 0 < relative_error(output, exact) < most
    assert relative_error(output[-100:], exact[-100:]) < most
    assert told.relative == pytest.approx(relative_error(output, exact), rel=1e-2)
    assert told.late == pytest.approx(relative_error(output[-100:], exact[-100:]), rel=1e-2)
    assert told.largest == pytest.approx(float((output - exact).abs().max()), rel=1e-2)
    assert told.steps == 1000
    assert f"{told.relative:.1e}" in str(told)


@pytest.mark.parametrize("batch_first", [False, True])
def test_error_leaves_the_stream_alone_and_takes_any_number_of_steps(batch_first: bool) -> None:
    module = fastrnn.LSTM(3, 5, batch_first=batch_first)
    with fastrnn.stream(module, batch=2, weights="int8") as stream:
        stream(torch.randn(2, 3))
        before, y = stream.state, stream(torch.zeros(2, 3))
        stream.state, kept = before, y.clone()
        assert 0 < stream.error(torch.randn(7, 4, 3)).relative < 1e-1
        assert same(stream.state, before)
        assert same(y, kept)
        for x in (torch.randn(7, 3), torch.randn(0, 4, 3), torch.randn(4, 0, 3)):
            with pytest.raises(ValueError, match="3 dimensions"):
                stream.error(x)
    with fastrnn.stream(module) as stream:
        assert stream.error(torch.randn(4, 2, 3))[:3] == (0, 0, 0)
    for parameter in module.parameters():
        parameter.data.zero_()
    with fastrnn.stream(module, weights="int8") as stream:
        assert stream.error(torch.randn(4, 2, 3))[:3] == (0, 0, 0)


def with_weight(value: float, at: str = "weight_hh_l0") -> fastrnn.LSTM:
    module = fastrnn.LSTM(3, 5)
    getattr(module, at).data[7, 2] = value
    return module


@pytest.mark.parametrize("at", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@formats
def test_weights_that_are_not_finite_are_refused(weights: str, value: float, at: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        fastrnn.stream(with_weight(value, at), weights=weights)
    fastrnn.stream(with_weight(value, at)).close()


def test_weights_beyond_float16() -> None:
    for value in (65520.0, -1e9):
        with pytest.raises(ValueError, match="too large for float16"):
            fastrnn.stream(with_weight(value), weights="float16")
        fastrnn.stream(with_weight(value), weights="int8").close()
    fastrnn.stream(with_weight(65519.0), weights="float16").close()


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-41, 1e-38, 1e-20, 1e30])
@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_weights_of_any_size(weights: str, scale: float) -> None:
    """Products that nothing is added to: a gate's row by x alone. What a format cannot tell from zero is zero."""
    module = fastrnn.LSTM(3, 9, bias=False)
    for parameter in module.parameters():
        parameter.data.mul_(scale)
    if weights == "float16" and scale > 1:
        pytest.skip("they are refused")
    x = torch.randn(4, 1, 3)
    with fastrnn.stream(module, weights=weights) as stream:
        output = in_chunks(stream, x)
    exact, _ = steps_of(module.double(), x.double())
    assert (output - exact).abs().max() < 2e-2 * exact.abs().max() + 1e-7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_what_is_no_number_stays_in_its_row(weights: str, value: float) -> None:
    """It may saturate a gate, as in the module, but with int8 all of its row is NaN."""
    module, x = fastrnn.LSTM(7, 21, 2), torch.randn(3, 5, 7)
    poisoned = x.clone()
    poisoned[1, 3, 5] = value
    with fastrnn.stream(module, batch=5, steps=3, weights=weights) as stream:
        expected = stream(x).clone()
        stream.reset()
        got = stream(poisoned).clone()
        others = [0, 1, 2, 4]
        assert same(got[:, others], expected[:, others])
        assert same(got[0], expected[0])
        if weights == "int8" or value != value:
            assert got[1:, 3].isnan().all()
            assert all(state[:, 3].isnan().all() for state in stream.state)
        elif weights == "float32":
            torch.testing.assert_close(got, steps_of(module, poisoned)[0], equal_nan=True)
        stream.reset([3])
        assert stream(x).isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-38, 1e-44, 1e30, 3e38])
@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_inputs_of_any_size(weights: str, scale: float) -> None:
    module, x = fastrnn.LSTM(7, 21), torch.randn(3, 5, 7).clamp_(-1, 1) * scale
    with fastrnn.stream(module, batch=5, steps=3, weights=weights) as stream:
        output = stream(x)
        exact = emulated(module, cell_of("lstm"), x, weights) if weights != "float32" else steps_of(module, x)[0]
        assert (output - exact).abs().max() < 1e-3
        assert output.isfinite().all()


@pytest.mark.parametrize("columns", [1, 2, 3, 515, 517, *exhaustive(4097, 20001)])
@formats
def test_sums_have_room_whatever_there_are_of(weights: str, columns: int) -> None:
    """All products of the largest numbers, of one sign: where sums of 32 bits would overflow, it shows."""
    module = fastrnn.LSTM(columns, 3, bias=False)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        getattr(module, name).data.fill_(1 / columns)
    x = torch.ones(1, 1, columns)
    with fastrnn.stream(module, weights=weights) as stream:
        output = stream(x[0])
    exact, _ = steps_of(module, x)
    torch.testing.assert_close(output, exact[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("heads", "hidden"), [(3, 33), (8, 40), (2, 94)])
def test_heads_are_blocks_of_dense_weights(weights: str, heads: int, hidden: int) -> None:
    """Beside them lie zeros, which add nothing: bitwise the same. Heads of odd sizes begin within pairs of int8."""
    module, x = fastrnn.LSTM(5, hidden, 2, num_heads=heads), torch.randn(9, 3, 5)
    with (
        fastrnn.stream(module, batch=3, steps=2, weights=weights) as stream,
        fastrnn.stream(fastrnn.heads.dense(module), batch=3, steps=2, weights=weights) as dense,
    ):
        assert torch.equal(in_chunks(stream, x, (2,)), in_chunks(dense, x, (2,)))
