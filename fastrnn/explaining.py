"""`fastrnn.explain`: which backend would serve a call, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fastrnn import backends, stack
from fastrnn.backends import aten
from fastrnn.backends.call import Call
from fastrnn.backends.layer import Layer
from fastrnn.lengths import Lengths
from fastrnn.nn import _Layers
from fastrnn.prepare import prepare


@dataclass(frozen=True)
class Explanation:
    """What would run. `str()` of it is for people."""

    asked: str
    """the backend that was asked for, by whatever means, or "auto" """
    layers: list[str]
    """the backend of each layer; empty where the one that was asked for cannot serve the call"""
    reasons: dict[str, str]
    """for each backend, why it is taken or why not"""

    def __str__(self) -> str:
        served = ", ".join(dict.fromkeys(self.layers)) or "none: the call would raise"
        lines = [f"asked for: {self.asked}", f"serves the call: {served}"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.reasons.items()])


def explain(
    module: nn.Module,
    input: Any,
    hx: Any = None,
    *,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
) -> Explanation:
    """Says which backend would serve `module(input, hx, lengths=..., resets=...)`, and why; computes nothing.

    Args:
        module: a fastrnn.RNN, GRU or LSTM.
        input, hx, lengths, resets, return_states: what its forward would be called with.

    Returns:
        An `Explanation`; print it, or read its fields.

    Raises:
        TypeError: the module is not one of fastrnn's layers.
        ValueError, RuntimeError: what the call itself would raise for its arguments.

    Example::

        >>> import torch, fastrnn
        >>> gru = fastrnn.GRU(3, 4, backend="reference")
        >>> fastrnn.explain(gru, torch.zeros(5, 2, 3)).layers
        ['reference']
    """
    if not isinstance(module, _Layers):
        raise TypeError(f"explain: module must be a fastrnn.RNN, GRU or LSTM, got {type(module).__name__}")
    prepared = prepare(module._options(), module._weights(), input, hx, lengths, resets)
    call, asked = replace(prepared.call, return_states=return_states), prepared.backend
    first = call.layer(0, call.x)
    training = stack.needs_gradients(*call.tensors())
    try:
        layers = _serving(asked, call, first, training)
    except backends.CannotServe:
        layers = []
    preferred = backends.why_aten(call, first, training)
    reasons = {}
    for name in backends.BACKENDS:
        why_not = aten.supports(call) if name == "aten" else backends.module(name).supports(first)
        if why_not is not None:
            reasons[name] = f"cannot: {why_not}"
        elif name in layers:
            reasons[name] = f"taken: {preferred}" if (asked, name) == ("auto", "aten") else "taken"
        elif asked == "auto" and training and name in _backward(call, layers):
            reasons[name] = "taken for the backward"
        elif asked == "auto":
            reasons[name] = "could, but one that is preferred serves the call"
        else:
            reasons[name] = "could, but another was asked for"
    return Explanation(asked, layers, reasons)


def _backward(call: Call, layers: list[str]) -> list[str]:
    """What `auto` takes for each layer's backward; torch's kernels keep to themselves."""
    if "aten" in layers:
        return []
    indices = range(call.num_layers)
    return [backends.operator_backend("auto", call.layer(k, _input_of(call, k)), "backward") for k in indices]


def _serving(asked: str, call: Call, first: Layer, training: bool) -> list[str]:
    if backends.aten_serves(asked, call, first, training):
        return ["aten"] * call.num_layers
    return [backends.operator_backend(asked, call.layer(k, _input_of(call, k))) for k in range(call.num_layers)]


def _input_of(call: Call, index: int) -> Tensor:
    """A stand-in for layer number `index`'s input, without memory: (T, B, ·)."""
    if index == 0:
        return call.x
    steps, batch = call.x.shape[:2]
    width = call.directions * call.states0[0].shape[-1]
    return call.x.new_empty(1).expand(steps, batch, width)
