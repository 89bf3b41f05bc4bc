"""Weights that change after a stream was made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn.cells import library
from tests.streaming.streams import bits, in_chunks, same

INPUT, HIDDEN = 5, 9


def in_place(module: Any) -> None:
    with torch.no_grad():
        module.weight_hh_l0[3, 2] += 1


def through_data(module: Any) -> None:
    module.bias_ih_l0.data[7] += 1


def replaced(module: Any) -> None:
    module.weight_ih_l0 = nn.Parameter(torch.randn_like(module.weight_ih_l0))


def loaded(module: Any) -> None:
    module.load_state_dict({name: value + 0.1 for name, value in module.state_dict().items()})


def assigned(module: Any) -> None:
    state = {name: value + 0.1 for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def stepped(module: Any) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.SGD(module.parameters(), 0.1).step()


@pytest.mark.parametrize("change", [in_place, through_data, replaced, loaded, assigned, stepped])
@pytest.mark.parametrize("maker", [fastrnn.LSTM, nn.LSTM])
def test_changes_are_seen_and_taken(maker: Any, change: Callable[[Any], None]) -> None:
    module, x = maker(INPUT, HIDDEN), torch.randn(4, 1, INPUT)
    with fastrnn.stream(module) as stream, fastrnn.stream(copy.deepcopy(module)) as before:
        assert stream.stale is False
        in_chunks(stream, x)
        in_chunks(before, x)
        change(module)
        assert stream.stale is True
        state = stream.state
        assert same(in_chunks(stream, x), in_chunks(before, x))
        stream.state = state
        stream.update()
        assert same(stream.state, state)
        assert stream.stale is False
        with fastrnn.stream(module) as after:
            after.state = state
            assert same(in_chunks(stream, x), in_chunks(after, x))


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_changes_are_taken_in_fewer_bits(weights: str) -> None:
    module, x = fastrnn.LSTM(INPUT, HIDDEN, 2, proj_size=3), torch.randn(4, 1, INPUT)
    with fastrnn.stream(module, weights=weights) as stream:
        assert not stream.stale
        loaded(module)
        assert stream.stale
        stream.update()
        assert not stream.stale
        with fastrnn.stream(module, weights=weights) as after:
            assert same(in_chunks(stream, x), in_chunks(after, x))
        with torch.no_grad():
            module.weight_hr_l1[2, 5] = float("inf")
        refused(stream, ValueError, "finite", x)


def refused(stream: fastrnn.Stream, error: type[Exception], text: str, x: torch.Tensor) -> None:
    """`update` raises and changes neither states nor what the stream computes."""
    before = stream.state
    expected = in_chunks(stream, x)
    stream.state = before
    assert stream.stale is True
    with pytest.raises(error, match=text):
        stream.update()
    assert all(torch.equal(*pair) for pair in zip(bits(stream.state), bits(before), strict=True))
    assert same(in_chunks(stream, x), expected)


def wider(module: Any) -> None:
    module.__init__(INPUT + 1, HIDDEN)


def more_units(module: Any) -> None:
    module.__init__(INPUT, HIDDEN + 1)


def another_layer(module: Any) -> None:
    module.__init__(INPUT, HIDDEN, 2)


def another_layout(module: Any) -> None:
    module.batch_first = True


def two_directions(module: Any) -> None:
    module.__init__(INPUT, HIDDEN, bidirectional=True)


@pytest.mark.parametrize("change", [wider, more_units, another_layer, another_layout, two_directions])
@pytest.mark.parametrize("maker", [fastrnn.LSTM, nn.LSTM])
def test_another_module(maker: Any, change: Callable[[Any], None]) -> None:
    module = maker(INPUT, HIDDEN)
    with fastrnn.stream(module) as stream:
        in_chunks(stream, torch.randn(2, 1, INPUT))
        change(module)
        refused(stream, ValueError, "another one|unidirectional", torch.randn(4, 1, INPUT))


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "weight_hh_l1", "bias_ih_l0", "bias_hh_l1"])
@pytest.mark.parametrize(
    "made",
    [
        lambda w: torch.cat([w, w[:1]]),
        lambda w: w[:-1],
        lambda w: w.double(),
        lambda w: w.to("meta"),
        lambda w: w[..., None],
    ],
    ids=["longer", "shorter", "double", "meta", "deeper"],
)
def test_parameters_that_fit_no_layer(name: str, made: Any) -> None:
    """Of the last layer first: what is laid out before has not changed either."""
    module = fastrnn.LSTM(INPUT, HIDDEN, 2)
    with fastrnn.stream(module) as stream:
        with torch.no_grad():
            module.weight_ih_l0 *= 2
            setattr(module, name, nn.Parameter(made(getattr(module, name).detach())))
        errors = r"another one|must have shapes|float32 on the CPU"
        refused(stream, (ValueError, RuntimeError), errors, torch.randn(4, 1, INPUT))  # type: ignore[arg-type]
        with pytest.raises((ValueError, RuntimeError), match=errors):
            fastrnn.stream(module)


def test_parameters_whose_memory_was_freed() -> None:
    module = fastrnn.LSTM(INPUT, HIDDEN)
    with fastrnn.stream(module) as stream:
        module.weight_hh_l0.untyped_storage().resize_(0)
        refused(stream, RuntimeError, "freed", torch.randn(4, 1, INPUT))
        with pytest.raises(RuntimeError, match="freed"):
            fastrnn.stream(module)


def test_weights_that_are_no_numbers_are_not_stale() -> None:
    """In float32, in which they are allowed."""
    module = fastrnn.LSTM(INPUT, HIDDEN)
    module.weight_hh_l0.data[3, 4] = float("nan")
    with fastrnn.stream(module) as stream:
        assert not stream.stale


@pytest.mark.exhaustive  # for the kernel's compilation
def test_rates_of_zoneout() -> None:
    module, x = fastrnn.Recurrent(library.zoneout_gru, INPUT, HIDDEN, zoneout=0.3), torch.randn(4, 1, INPUT)
    with fastrnn.stream(module) as stream:
        assert not stream.stale
        module.zoneout = 0.6
        assert stream.stale
        stream.update()
        assert not stream.stale
        with fastrnn.stream(module) as after:
            assert same(in_chunks(stream, x), in_chunks(after, x))


def test_a_stream_has_weights_of_its_own() -> None:
    module, x = fastrnn.LSTM(INPUT, HIDDEN), torch.randn(4, 1, INPUT)
    with fastrnn.stream(module) as stream:
        expected = in_chunks(stream, x)
        stream.reset()
        for parameter in module.parameters():
            parameter.data.zero_()
        assert same(in_chunks(stream, x), expected)
