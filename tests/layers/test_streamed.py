"""Prepacked calls by the kernels of streams: in float32 as without, in fewer bits as streams; who shares weights."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch

import fastrnn
from fastrnn.backends import module
from fastrnn.binding.streamed import MOST_ROWS, Streamed
from fastrnn.prepacking import FORMATS
from tests.layers.prepacked import KINDS, B, I, T, all_at_once, flat, pair, repeat
from tests.plans import prepacked_plans_of

pytestmark = pytest.mark.skipif(bool(module("numba").ready()), reason="no Numba")


def test_streamed_calls_at_the_same_time_share_weights_alone() -> None:
    plain, prepacked = (net.prepack(weights="float16") for net in pair("LSTM"))
    inputs = [torch.randn(T, B, I) for _ in range(8)]
    expected = [repeat(plain, x) for x in inputs]
    repeat(prepacked, inputs[0])
    (plan,) = prepacked_plans_of(prepacked)
    assert isinstance(plan, Streamed)
    memory = plan.free.pop()  # another call has it
    assert all(map(torch.equal, repeat(prepacked, inputs[1]), expected[1]))
    assert plan.free[0] is not memory
    assert plan.free[0].weights is memory.weights
    all_at_once(prepacked, inputs, expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *product(KINDS, [{}, {"num_layers": 2, "batch_first": True}, {"num_heads": 2, "bias": False}]),
        ("LSTM", {"proj_size": 7, "num_layers": 2}),
    ],
)
def test_weights_in_fewer_bits_are_those_of_streams(kind: str, options: dict[str, Any]) -> None:
    plain, prepacked = pair(kind, **options)
    x = torch.randn(T, B, I)
    for weights in FORMATS[1:]:
        prepacked.prepack(weights=weights)
        with fastrnn.stream(plain, batch=B, steps=T, weights=weights) as stream:
            order = (1, 0, 2) if plain.batch_first else (0, 1, 2)
            laid = x.permute(order).contiguous()
            expected = [stream(laid).clone(), *flat(stream.state)]
            with torch.no_grad():
                first = flat(prepacked(laid))  # before weights are kept, too
            for found in (first, repeat(prepacked, laid)):
                assert all(map(torch.equal, found, expected))
            states = stream.state
            if kind == "LSTM":
                states = tuple(state.transpose(0, 1).contiguous().transpose(0, 1) for state in states)
            expected = [stream(laid).clone(), *flat(stream.state)]
            assert all(map(torch.equal, repeat(prepacked, laid, states), expected))


@pytest.mark.parametrize("sizes", [(1000, 1, 17), (40, 1, 90), (60, 16, 33)], ids=str)
def test_streamed_calls_are_as_without(sizes: tuple[int, int, int]) -> None:
    steps, batch, hidden = sizes
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = fastrnn.LSTM(I, hidden, num_layers=2, backend="numba")
        prepacked, x = copy.deepcopy(plain).prepack(), torch.randn(steps, batch, I)
        assert all(map(torch.equal, repeat(prepacked, x), repeat(plain, x)))
        (plan,) = prepacked_plans_of(prepacked)
        assert isinstance(plan, Streamed)
        assert plan.free
    finally:
        torch.set_num_threads(threads)


def test_what_weights_in_fewer_bits_do_not_serve_is_computed_without() -> None:
    plain, prepacked = pair("LSTM")
    prepacked.prepack(weights="int8")
    many = torch.randn(T, MOST_ROWS + 1, I)
    assert all(map(torch.equal, repeat(prepacked, many), repeat(plain, many)))
    with torch.no_grad():
        (few, _), (one, _) = prepacked(many[:, :B], lengths=[T] * B), plain(many[:, :B], lengths=[T] * B)
        assert torch.equal(few, one)
    output, _ = prepacked(many)
    output.sum().backward()
    assert prepacked.weight_hh_l0.grad is not None
    assert "prepacked in int8" in repr(prepacked)


def test_formats_are_checked() -> None:
    _, prepacked = pair("GRU")
    with pytest.raises(ValueError, match="prepack: weights must be one of 'float32', 'float16', 'int8', got 'int4'"):
        prepacked.prepack(weights="int4")
    with torch.no_grad():
        prepacked.weight_ih_l0[0, 0] = 1e5
        prepacked.prepack(weights="float16")
        with pytest.raises(ValueError, match="too large for float16"):
            prepacked(torch.ones(T, B, I))
