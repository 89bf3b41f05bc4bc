"""Repeated calls where parameters and arguments became others: negative views, other memory, or none any more.

A parameter may stay the same object at the same address all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import fastrnn
from fastrnn import backends, watched_weights
from fastrnn.backends import module
from fastrnn.binding import bind
from fastrnn.binding.launches import Launches
from fastrnn.binding.plans import Bound, Torch
from tests.plans import plans_of, prepacked_plans_of
from tests.torch_parity import assert_close, gradients

pytestmark = pytest.mark.skipif(bool(module("numba").ready()), reason="no Numba")

KINDS = ("RNN", "GRU", "LSTM")
STEPS, BATCH, INPUT, HIDDEN = 18, 2, 5, 19
CALLS = 3

Exchange = Callable[[nn.Module, str], Any]


def sample_of(kind: str) -> Tensor:
    return torch.randn(*([] if "Cell" in kind else [STEPS]), BATCH, INPUT)


def states_of(kind: str) -> list[Tensor]:
    shape = (BATCH, HIDDEN) if "Cell" in kind else (1, BATCH, HIDDEN)
    return [torch.randn(shape) for _ in range(2 if "LSTM" in kind else 1)]


def given(states: list[Tensor]) -> Any:
    return tuple(states) if len(states) > 1 else states[0]


def warm(kind: str, *arguments: Any, backend: str | None = "numba") -> nn.Module:
    net: nn.Module = getattr(fastrnn, kind)(INPUT, HIDDEN, backend=backend)
    for _ in range(CALLS):
        net(*arguments)
    return net


def like_torch(net: nn.Module) -> nn.Module:
    theirs: nn.Module = getattr(nn, type(net).__name__)(INPUT, HIDDEN)
    theirs.load_state_dict(net.state_dict())
    return theirs


def negative(net: nn.Module, name: str) -> Tensor:
    """A view of a parameter's memory whose numbers are the parameter's, negated."""
    view = torch._neg_view(getattr(net, name).detach())
    assert view.data_ptr() == getattr(net, name).data_ptr()
    return view


def by_assignment(net: nn.Module, name: str) -> None:
    setattr(net, name, nn.Parameter(negative(net, name)))


def by_data(net: nn.Module, name: str) -> None:
    getattr(net, name).data = negative(net, name)


def swap(net: nn.Module, name: str, parameter: nn.Parameter) -> None:
    net._flat_weight_refs = []  # as torch.nn does before it swaps, which weak references forbid
    torch.utils.swap_tensors(getattr(net, name), parameter)


def by_swap_tensors(net: nn.Module, name: str) -> None:
    swap(net, name, nn.Parameter(negative(net, name)))


def by_load_state_dict(net: nn.Module, name: str) -> None:
    net.load_state_dict({**net.state_dict(), name: nn.Parameter(negative(net, name))}, assign=True)


def by_parametrization(net: nn.Module, name: str) -> None:
    class Negated(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return torch._neg_view(weight)

    register_parametrization(net, name, Negated())


def by_conversion(net: nn.Module, name: str) -> None:
    by_data(net, name)
    net.double().float()


EXCHANGES = (by_assignment, by_data, by_swap_tensors, by_load_state_dict, by_parametrization, by_conversion)
exchanges = pytest.mark.parametrize("exchange", EXCHANGES)
names = pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l0"])


def negated(net: nn.Module, name: str) -> nn.Module:
    theirs = like_torch(net)
    with torch.no_grad():
        getattr(theirs, name).neg_()
    return theirs


@names
@exchanges
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_become_negative_views(kind: str, exchange: Exchange, name: str) -> None:
    x = sample_of(kind)
    with torch.no_grad():
        net = warm(kind, x)
        theirs = negated(net, name)
        exchange(net, name)
        for _ in range(CALLS):
            assert_close(net(x), theirs(x), 2e-6)


@exchanges
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_become_negative_views_in_training(kind: str, exchange: Exchange) -> None:
    x = sample_of(kind).requires_grad_()
    net = warm(kind, x)
    theirs = negated(net, "weight_hh_l0")
    exchange(net, "weight_hh_l0")
    for _ in range(CALLS):
        output, expected = net(x), theirs(x)
        assert_close(output, expected, 2e-6)
        assert_close(gradients(output, [x]), gradients(expected, [x]), 1e-5)


@exchanges
@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_parameters_of_cells_that_become_negative_views(kind: str, exchange: Exchange) -> None:
    x = sample_of(kind)
    with torch.no_grad():
        net = warm(kind, x)
        theirs = negated(net, "weight_ih")
        exchange(net, "weight_ih")
        for _ in range(CALLS):
            assert_close(net(x), theirs(x), 2e-6)


@names
@pytest.mark.parametrize("kind", KINDS)
def test_negative_views_in_a_functional_call(kind: str, name: str) -> None:
    x = sample_of(kind)
    with torch.no_grad():
        net = warm(kind, x)
        theirs = negated(net, name)
        for _ in range(CALLS):
            assert_close(torch.func.functional_call(net, {name: negative(net, name)}, (x,)), theirs(x), 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_are_negative_views_from_the_first_call_on(kind: str) -> None:
    net, x = getattr(fastrnn, kind)(INPUT, HIDDEN), sample_of(kind)
    theirs = negated(net, "weight_hh_l0")
    by_assignment(net, "weight_hh_l0")
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for _ in range(CALLS):
                assert_close(net(x), theirs(x), 2e-6)


def to_another_shape(net: nn.Module) -> None:
    net.weight_hh_l0.data = net.weight_hh_l0.data.view(HIDDEN, -1)


def to_another_dtype(net: nn.Module) -> None:
    net.requires_grad_(False)
    net.weight_hh_l0.data = net.weight_hh_l0.data.view(torch.int32)


def to_another_layout(net: nn.Module) -> None:
    net.requires_grad_(False)
    values = torch.zeros_like(net.weight_hh_l0).to_sparse_coo()
    swap(net, "weight_hh_l0", nn.Parameter(values, requires_grad=False))


def to_another_device(net: nn.Module) -> None:
    swap(net, "weight_hh_l0", nn.Parameter(net.weight_hh_l0.detach().to("meta")))


class Usual(Exception):
    """A call took the usual way."""


@pytest.fixture
def usual_way_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on, calls that take the usual way raise `Usual`."""

    def usual(*_: Any, **__: Any) -> None:
        raise Usual

    def start() -> None:
        monkeypatch.setattr(bind, "bind", usual)

    return start


@pytest.mark.parametrize("change", [to_another_shape, to_another_dtype, to_another_layout, to_another_device])
def test_what_becomes_of_a_parameter_otherwise_is_checked(
    change: Callable[[nn.Module], None], usual_way_raises: Callable[[], None]
) -> None:
    x = sample_of("GRU")
    with torch.no_grad():
        net = warm("GRU", x)
        usual_way_raises()
        net(x)
        change(net)
        with pytest.raises(Usual):
            net(x)


def freed(like: Tensor, view: bool) -> Tensor:
    """A tensor like another, whose memory was given back; as a view, its address is no longer 0."""
    tensor = torch.stack([like, like])[1] if view else like.clone()
    tensor.untyped_storage().resize_(0)
    assert (tensor.data_ptr() > 0) == view
    return tensor


@pytest.mark.parametrize("view", [False, True], ids=["whole", "view"])
@pytest.mark.parametrize("way", ["inference", "prepacked", "training", "torch"])
@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell"])
def test_arguments_without_memory_take_the_usual_way(
    kind: str, way: str, view: bool, usual_way_raises: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "LSTMCell" and way in ("training", "torch"):
        pytest.skip("cells have no such calls")
    if way == "torch":
        monkeypatch.setattr(backends, "why_torch", lambda *_, **__: "it is faster")
    x, states = sample_of(kind), states_of(kind)
    with torch.set_grad_enabled(way == "training"):
        net = warm(kind, x, given(states), backend=None if way == "torch" else "numba")
        if way == "prepacked":
            net.prepack()
            for _ in range(CALLS):
                net(x, given(states))
        assert type(plans_of(net)[0]) is {"training": Bound, "torch": Torch}.get(way, Launches)
        assert bool(prepacked_plans_of(net)) == (way == "prepacked")
        usual_way_raises()
        net(x, given(states))
        with pytest.raises(Usual):
            net(freed(x, view), given(states))
        with pytest.raises(Usual):
            net(freed(x, view))
        for index, state in enumerate(states):
            others = copy.copy(states)
            others[index] = freed(state, view)
            with pytest.raises(Usual):
                net(x, given(others))


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("way", ["inference", "prepacked", "training"])
def test_parameters_without_memory_take_the_usual_way(way: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = sample_of("GRU")
    with torch.set_grad_enabled(way == "training"):
        net = fastrnn.GRU(INPUT, HIDDEN, backend="numba").prepack(way == "prepacked")
        for _ in range(CALLS):
            net(x)
        theirs, parameter = like_torch(net), getattr(net, name)
        values, storage = parameter.detach().clone(), parameter.untyped_storage()
        storage.resize_(0)
        with monkeypatch.context() as patch:
            patch.setattr(bind, "bind", lambda *_: pytest.fail("usual way"))
            with pytest.raises(pytest.fail.Exception, match="usual way"):
                net(x)
        storage.resize_(values.nbytes)
        with torch.no_grad():
            parameter.copy_(2 * values)
            getattr(theirs, name).copy_(2 * values)
        for _ in range(CALLS):
            assert_close(net(x), theirs(x), 2e-6)


def test_parameters_without_memory_are_not_remembered() -> None:
    parameter = nn.Parameter(torch.stack([torch.zeros(3), torch.ones(3)])[1])
    assert watched_weights.is_readable(parameter)
    parameter.untyped_storage().resize_(0)
    readable = watched_weights.is_readable(parameter)  # not within the assertion, which would show its numbers
    assert not readable


@pytest.mark.parametrize("shape", [(256, 32), (240, 16), (60, 20), (19, 5), (1, 64), (64, 1), (2, 3), (20,), (1024,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sample_is_spread_over_rows_and_columns(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    words = watched_weights._sample(tensor)
    each = dtype.itemsize // 4
    numbers = sorted({word // each for word in words})
    assert words == [number * each + word for number in [w // each for w in words[::each]] for word in range(each)]
    assert (numbers[0], numbers[-1]) == (0, tensor.numel() - 1)
    columns = shape[1] if len(shape) > 1 else 1
    assert len({number // columns for number in numbers}) >= min(watched_weights.SAMPLE, shape[0])
    assert len({number % columns for number in numbers}) >= min(watched_weights.SAMPLE // 2, columns)


def test_numbers_that_lie_across_words_are_not_watched() -> None:
    memory = bytearray(64)
    for offset, watched in ((4, True), (2, False)):
        parameter = nn.Parameter(torch.frombuffer(memory, dtype=torch.float32, count=8, offset=offset))
        assert watched_weights.Values.can_be_watched([parameter]) == watched
