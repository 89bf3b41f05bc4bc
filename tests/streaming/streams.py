"""What the tests of streams share: modules, their outputs by plain loops, and calls of a stream."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.cells import library
from fastrnn.cells.known import known
from tests.tolerances import assert_accurate

ZONEOUT = {"zoneout_lstm": (0.3, 0.2), "zoneout_gru": 0.3}

MAKERS: dict[str, Callable[..., Any]] = {
    "rnn_tanh": fastrnn.RNN,
    "rnn_relu": lambda *sizes, **options: fastrnn.RNN(*sizes, nonlinearity="relu", **options),
    "gru": fastrnn.GRU,
    "lstm": fastrnn.LSTM,
}


def make(kind: str, *sizes: int, **options: Any) -> nn.Module:
    """A module of a built-in cell or of one of the library's: I, H and the number of layers."""
    if kind in MAKERS:
        return MAKERS[kind](*sizes, **options)
    return fastrnn.Recurrent(getattr(library, kind), *sizes, zoneout=ZONEOUT.get(kind), **options)


def make_cell(kind: str, *sizes: int, **options: Any) -> nn.Module:
    """A cell's module."""
    if kind in MAKERS:
        name, *nonlinearity = kind.split("_")
        options |= {"nonlinearity": nonlinearity[0]} if nonlinearity else {}
        return getattr(fastrnn, f"{name.upper()}Cell")(*sizes, **options)
    return fastrnn.RecurrentCell(getattr(library, kind), *sizes, zoneout=ZONEOUT.get(kind), **options)


def steps_of(module: nn.Module, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """The output for x (T, B, I), of a `batch_first` module (B, T, I), and the states after it, in evaluation."""
    module = copy.deepcopy(module).eval()
    if isinstance(module, fastrnn.module.Module):
        module.backend = "reference"
    with torch.no_grad():
        if not isinstance(module, nn.RNNCellBase | fastrnn.RecurrentCell):
            return module(x, hx)
        outputs = []
        for step in x:
            hx = module(step, hx)
            outputs.append(hx[0] if isinstance(hx, tuple) else hx)
        return torch.stack(outputs), hx


def in_double(value: Any) -> Any:
    """Tensors in float64, in the form that they have."""
    if value is None or isinstance(value, Tensor):
        return value if value is None else value.double()
    return tuple(each.double() for each in value)


def tensors(states: Any) -> tuple[Tensor, ...]:
    return (states,) if isinstance(states, Tensor) else tuple(states)


def in_chunks(stream: Any, x: Tensor, sizes: Sequence[int] = (), **options: Any) -> Tensor:
    """The outputs for x in calls of so many steps each, the last as often as it takes; without any by single rows."""
    dim = 1 if stream.module.__dict__.get("batch_first", False) else 0
    outputs, start = [], 0
    while start < x.shape[dim]:
        if not sizes:
            outputs.append(stream(x.select(dim, start).contiguous(), **options).clone().unsqueeze(dim))
            start += 1
            continue
        count = sizes[min(len(outputs), len(sizes) - 1)]
        outputs.append(stream(x.narrow(dim, start, min(count, x.shape[dim] - start)), **options).clone())
        start += count
    return torch.cat(outputs, dim)


def assert_computes(module: nn.Module, x: Tensor, sizes: Sequence[int] = (), hx: Any = None, **options: Any) -> None:
    """A stream of a module gives its outputs and final states, in calls of so many steps."""
    batch = x.shape[0 if module.__dict__.get("batch_first", False) else 1]
    with fastrnn.stream(module, batch=batch, steps=max(sizes, default=1), **options) as stream:
        if hx is not None:
            stream.state = hx
        output, states = in_chunks(stream, x, sizes), stream.state
    truth, true_states = steps_of(copy.deepcopy(module).double(), x.double(), in_double(hx))
    single, single_states = steps_of(module, x, hx)
    assert_accurate("output", output, truth, single)
    for number, state in enumerate(tensors(states)):
        others = tensors(true_states)[number], tensors(single_states)[number]
        assert_accurate(f"state {number}", state, *others)


def bits(states: Any) -> list[Tensor]:
    """States as integers, so that NaN equals NaN and -0 not 0."""
    return [state.clone().view(torch.int32) for state in tensors(states)]


def same(one: Any, other: Any) -> bool:
    """Whether tensors, or tuples of them, are bitwise equal."""
    return all(torch.equal(*pair) for pair in zip(bits(one), bits(other), strict=True))


def cell_of(kind: str) -> Any:
    return known(getattr(library, kind)) if kind not in MAKERS else known(kind)
