"""`fastrnn.explain`: which backend would serve a call, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import indent
from typing import Any, overload

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import backends, checks
from fastrnn.backends import aten, cost
from fastrnn.backends.layer import Layer
from fastrnn.backends.stack import Stack
from fastrnn.binding.bind import plan_of
from fastrnn.binding.checked import check
from fastrnn.cell_parameters import CellParameters
from fastrnn.cells.known import KNOWN
from fastrnn.gradients import needs_gradients
from fastrnn.lengths import Lengths
from fastrnn.module import eagerly, other_layers, recurrent_layers
from fastrnn.nn_cells import _Cell
from fastrnn.nn_layers import Layers
from fastrnn.recurrent import Recurrent, RecurrentCell


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


@dataclass(frozen=True)
class ModelExplanation:
    """What would run in a whole model. `str()` of it is for people."""

    calls: list[tuple[str, Explanation]]
    """each layer's name and its explanation, in the order of calls; calls of one layer that are alike come once where
    they follow one another"""
    not_called: list[str]
    """the names of layers that were not called"""
    others: dict[str, str]
    """the names and classes of other recurrent layers, such as torch.nn's"""

    def __str__(self) -> str:
        lines = [f"{name}:\n{indent(str(explanation), '  ')}" for name, explanation in self.calls]
        lines += [f"{name}: not called" for name in self.not_called]
        lines += [
            f"{name}: a {kind}; fastrnn.accelerate(model) makes torch.nn's layers fastrnn's"
            for name, kind in self.others.items()
        ]
        return "\n".join(lines)


@overload
def explain(
    module: Layers | Recurrent,
    input: Tensor | PackedSequence,
    hx: Any = None,
    *,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    **inputs: Tensor,
) -> Explanation: ...


@overload
def explain(module: _Cell | RecurrentCell, input: Tensor, hx: Any = None, **inputs: Tensor) -> Explanation: ...


@overload
def explain(module: nn.Module, *arguments: Any, **keywords: Any) -> Any: ...


def explain(module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    """Says which backend would serve `module(*arguments, **keywords)`, and why.

    Of a layer or cell nothing is computed. A whole model is called once, as it would be otherwise, with all that this
    changes in it, such as random numbers drawn and BatchNorm's averages; compiled models run eagerly.

    Args:
        module: one of fastrnn's layers or cells, or any module that holds some.
        arguments, keywords: what it would be called with: of a layer `input, hx=None, *, lengths=None, resets=None,
            return_states=False`, and the inputs of its steps if its cell has any.

    Returns:
        An `Explanation`, or of a model a `fastrnn.explaining.ModelExplanation`, in the order of the layers' calls;
        print it, or read its fields.

    Raises:
        TypeError: `module` is no module.
        ValueError: it holds none of fastrnn's layers and cells.
        ValueError, RuntimeError, TypeError: what the call itself would raise for its arguments.

    Example::

        >>> import torch, fastrnn
        >>> gru = fastrnn.GRU(3, 4, backend="reference")
        >>> fastrnn.explain(gru, torch.zeros(5, 2, 3)).layers
        ['reference']
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), gru)
        >>> [(name, found.layers) for name, found in fastrnn.explain(model, torch.zeros(5, 2, 2)).calls]
        [('1', ['reference'])]
    """
    if isinstance(module, (Layers, Recurrent)):
        return _of_layers(module, *arguments, **keywords)
    if isinstance(module, (_Cell, RecurrentCell)):
        return _of_cell(module, *arguments, **keywords)
    return _of_model(module, arguments, keywords)


def _of_layers(
    module: Any,
    input: Any,
    hx: Any = None,
    *,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    **inputs: Any,
) -> Explanation:
    return _of_call(module, input, hx, lengths, resets, return_states, _inputs(module, inputs, input))


def _inputs(module: Any, given: dict[str, Any], input: Any) -> tuple[Any, ...]:
    """Of the steps, which only other cells than torch's have. Nothing is drawn."""
    return module._inputs(given, input, draws=False) if isinstance(module, CellParameters) else ()


def _of_cell(module: Any, input: Any, hx: Any = None, **inputs: Any) -> Explanation:
    states = hx if hx is None else (hx,)
    names = KNOWN[module._cell_name].states
    if hx is not None and (len(names) > 1 or isinstance(module, CellParameters)):
        checks.count_of_states(module._configuration().label, hx, names)
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    return _of_step(module, input, states, _inputs(module, inputs, input))


def _of_step(module: Any, input: Any, states: Any, inputs: tuple[Any, ...] = ()) -> Explanation:
    return _of_call(module, input, states, None, None, False, inputs)


def _of_model(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> ModelExplanation:
    layers = recurrent_layers("explain", model)
    calls: list[tuple[str, Explanation]] = []

    def noted(name: str, module: Any, inner: str, explained: Callable[..., Explanation]) -> Callable[..., Any]:
        usual = getattr(module, inner)

        def note(*given: Any) -> Any:
            call = name, explained(module, *given)
            if calls[-1:] != [call]:
                calls.append(call)
            return usual(*given)

        return note

    # Within their forward, which may be of a class of the user's, with other arguments.
    inner = {name: "_step" if hasattr(module, "_step") else "_run" for name, module in layers.items()}
    try:
        for name, module in layers.items():
            explained: Any = _of_step if inner[name] == "_step" else _of_call
            module.__dict__[inner[name]] = noted(name, module, inner[name], explained)
        with eagerly():
            model(*arguments, **keywords)
    finally:
        for name, module in layers.items():
            module.__dict__.pop(inner[name], None)
    called = {name for name, _ in calls}
    return ModelExplanation(calls, [name for name in layers if name not in called], other_layers(model))


def _of_call(
    module: Any,
    input: Any,
    hx: Any,
    lengths: Lengths | None,
    resets: Tensor | None,
    return_states: bool,
    inputs: tuple[Any, ...] = (),
) -> Explanation:
    weights = module._checked_weights(input, hx)
    arguments = (module._configuration(), weights, input, hx, lengths, resets, return_states, inputs)
    checked, stack = check(*arguments)
    asked, first = checked.backend, stack.layer(0, stack.x)
    training = needs_gradients(*stack.tensors())
    try:
        layers = plan_of(checked, stack).served_by(stack)
    except backends.CannotServe:
        layers = []
    preferred = backends.why_aten(stack, first, training) if "aten" in layers else None
    reasons = {}
    for name in backends.BACKENDS:
        why_not = aten.supports(stack) if name == "aten" else backends.module(name).supports(first)
        if why_not is not None:
            reasons[name] = f"cannot: {why_not}"
        elif name in layers:
            why = preferred if name == "aten" else _compared(name, stack, first, training)
            reasons[name] = f"taken: {why}" if asked == "auto" and why else "taken"
        elif asked == "auto" and training and name in _backward(stack, layers):
            reasons[name] = "taken for the backward"
        elif asked == "auto":
            reasons[name] = "could, but one that is preferred serves the call"
        else:
            reasons[name] = "could, but another was asked for"
    return Explanation(asked, layers, reasons)


def _compared(name: str, stack: Stack, first: Layer, training: bool) -> str | None:
    """The predicted times of both engines, where the one with this name was chosen for them."""
    if name != "numba" or aten.supports(stack) is not None:
        return None
    return cost.compared(name, cost.predicted(backends.sizes_of(stack, first, training)))


def _backward(stack: Stack, layers: list[str]) -> list[str]:
    """What `auto` takes for the backward of layers like the first; torch's kernels keep to themselves."""
    if "aten" in layers:
        return []
    return [backends.operator_backend("auto", stack.layer(0, stack.x), "backward")]
