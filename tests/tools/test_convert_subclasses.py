"""accelerate and to_torch with classes derived from torch's layers that override nothing of a call."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastrnn
from fastrnn.convert import Change
from tests.tools.test_convert import silently

INPUT, HIDDEN = 3, 4


class Mixin(nn.Module):
    def summary(self, x: Tensor) -> Tensor:
        return self(x)[1]


class Forecast(Mixin, nn.GRU):
    """Its own constructor, representation and methods, one of which makes another of its kind."""

    def __init__(self, horizon: int) -> None:
        super().__init__(INPUT, HIDDEN, batch_first=True)
        self.horizon = horizon

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, horizon={self.horizon}"

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.bias_hh_l0)

    def longer(self) -> Forecast:
        return type(self)(self.horizon + 1)


class Derived(Forecast):
    pass


class Cell(nn.LSTMCell):
    def steps(self, xs: Tensor) -> Tensor:
        state = None
        for x in xs:
            state = self(x, state)
        assert state is not None
        return state[0]


def make(cls: type, *arguments: int) -> Any:
    torch.manual_seed(0)
    return cls(*arguments)


def accelerated(module: nn.Module) -> Change:
    (change,) = silently(fastrnn.accelerate, module)
    return change


@pytest.mark.parametrize("cls", [Forecast, Derived])
def test_there_and_back(cls: type, usual_way: list[str]) -> None:
    module, expected, x = make(cls, 7), make(cls, 7), torch.randn(2, 5, INPUT)
    change = accelerated(module)
    name = f"{__name__}.{cls.__qualname__}"
    assert str(change) == f"the model itself: {name} -> {name} on fastrnn.GRU"
    assert isinstance(module, cls)
    assert isinstance(module, fastrnn.GRU)
    assert (str(module), type(module).__name__) == (str(expected), cls.__name__)
    torch.testing.assert_close(module.summary(x), expected.summary(x))
    assert usual_way
    assert module.state_dict().keys() == expected.state_dict().keys()
    assert module(x, lengths=[5, 0])[1][0, 1].count_nonzero() == 0

    module.backend = "reference"
    (change,) = silently(fastrnn.to_torch, module)
    assert str(change) == f"the model itself: {name} on fastrnn.GRU -> {name} (without backend='reference')"
    assert type(module) is cls
    torch.testing.assert_close(module(x), expected(x))


def test_a_cell() -> None:
    module, expected, xs = make(Cell, INPUT, HIDDEN), make(Cell, INPUT, HIDDEN), torch.randn(4, 2, INPUT)
    accelerated(module)
    assert isinstance(module, fastrnn.LSTMCell)
    torch.testing.assert_close(module.steps(xs), expected.steps(xs))


def test_a_method_makes_another_of_its_kind() -> None:
    module = make(Forecast, 7)
    accelerated(module)
    longer = module.longer()
    assert (type(longer), longer.horizon, longer.bias_hh_l0[0]) == (type(module), 8, 1)
    assert longer(torch.randn(2, 5, INPUT))[0].shape == (2, 5, HIDDEN)


def through_a_file(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "file": through_a_file,
    **{f"pickle {p}": lambda module, p=p: pickle.loads(pickle.dumps(module, p)) for p in range(6)},
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(("cls", "arguments"), [(Forecast, (7,)), (Cell, (INPUT, HIDDEN))], ids=["layer", "cell"])
def test_copies_are_of_the_same_class(cls: type, arguments: tuple[int, ...], how: str) -> None:
    module, x = make(cls, *arguments), torch.randn(2, INPUT)
    accelerated(module)
    other = COPIES[how](module)
    assert (type(other), str(other)) == (type(module), str(module))
    assert torch.equal(other(x)[0], module(x)[0])
    fastrnn.to_torch(other, report=str)
    assert type(other) is cls


def test_a_parametrized_one() -> None:
    module, expected = (parametrizations.weight_norm(make(Forecast, 7), "weight_hh_l0") for _ in range(2))
    x = torch.randn(2, 5, INPUT)
    accelerated(module)
    assert isinstance(module, fastrnn.GRU)
    torch.testing.assert_close(module(x)[0], expected(x)[0])
    silently(fastrnn.to_torch, module)
    assert not isinstance(module, fastrnn.GRU)
    torch.testing.assert_close(module(x)[0], expected(x)[0])


def test_converted_again() -> None:
    module = make(Forecast, 7)
    accelerated(module)
    change = accelerated(module)
    assert (change.after, change.note) == (None, "already: a subclass of fastrnn.GRU")
    (change,) = silently(fastrnn.to_torch, make(Forecast, 7))
    assert (change.after, change.note) == (None, "already: a subclass of torch.nn.GRU")


def test_what_is_lost_on_the_way_back_is_warned_of() -> None:
    module = make(Forecast, 7)
    accelerated(module)
    module.backend = "reference"
    with pytest.warns(UserWarning, match="without backend='reference'"):
        fastrnn.to_torch(module)


class WithMetaclass(nn.GRU, metaclass=type("Meta", (type,), {})):
    pass


def with_attribute(name: str) -> type:
    return type("Other", (nn.GRU,), {name: lambda *_: None})


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (with_attribute("forward"), "with a forward of its own"),
        (with_attribute("check_forward_args"), "with an attribute check_forward_args of its own"),
        (with_attribute("prepack"), "with an attribute prepack of its own"),
        (type("Below", (Derived, with_attribute("__getattr__")), {}), "with an attribute __getattr__ of its own"),
        (with_attribute("__reduce__"), "with an attribute __reduce__ of its own"),
        (WithMetaclass, "with a metaclass of its own"),
    ],
)
def test_what_overrides_a_call_is_left_and_told_what_to_derive_from(cls: type, reason: str) -> None:
    module = nn.GRU(INPUT, HIDDEN)
    module.__class__ = cls
    assert accelerated(module).note == f"a subclass of torch.nn.GRU {reason}: derive it from fastrnn.GRU instead"
    assert type(module) is cls


def test_classes_are_not_kept() -> None:
    def converted() -> weakref.ref[type]:
        cls = type("Short", (nn.GRU,), {})
        module = cls(INPUT, HIDDEN)
        fastrnn.accelerate(module, report=str)
        return weakref.ref(type(module))

    seen = converted()
    gc.collect()
    assert seen() is None
