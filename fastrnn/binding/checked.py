"""A call whose arguments have been checked: what is known of all calls like it, and how their tensors are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks
from fastrnn.backends import check_name, requested
from fastrnn.backends.stack import Stack
from fastrnn.binding.configuration import Configuration
from fastrnn.binding.layouts import Layout, PackedLayout, States
from fastrnn.lengths import Lengths

Weights = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Checked:
    """What a call's arguments were found to be."""

    configuration: Configuration
    layout: Layout
    weights: Weights
    """as `Stack.weights`, before autocast"""
    state_shapes: list[tuple[int, ...]]
    backend: str
    """the one that was asked for"""
    dtype: torch.dtype | None
    """autocast's, where it converts"""
    return_states: bool

    def zeros(self, x: Tensor) -> States:
        """What a call without states begins with."""
        return tuple(x.new_zeros(shape) for shape in self.state_shapes)

    def stack(
        self,
        x: Tensor,
        states: States | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        inputs: Sequence[Tensor] = (),
    ) -> Stack:
        """The whole call, from what `layout` gives."""
        dtype, weights = self.dtype, self.weights
        if dtype is not None:
            x, states = x.to(dtype), states and tuple(state.to(dtype) for state in states)
            weights = [[tensor.to(dtype) for tensor in tensors] for tensors in weights]
            inputs = [value.to(dtype) for value in inputs]
        packed = None
        if isinstance(self.layout, PackedLayout):
            packed = self.layout.data.to(x.dtype), self.layout.batch_sizes
        configuration, mask = self.configuration, None
        if configuration.recurrent_dropout and configuration.training:
            mask = x.new_empty(1).expand(self.state_shapes[0])
        return Stack(
            cell_name=configuration.cell_name,
            x=x,
            states0=states or self.zeros(x),
            weights=weights,
            bidirectional=configuration.bidirectional,
            dropout=configuration.dropout,
            training=configuration.training,
            lengths=lengths,
            resets=resets,
            recompute=configuration.recompute,
            prepacked=configuration.prepacked,
            return_states=self.return_states,
            packed=packed,
            of_cell=configuration.is_cell,
            inputs=inputs,
            recurrent_mask=mask,
        )

    def laid_out(
        self,
        input: Any,
        states: States | None,
        lengths: Lengths | None,
        resets: Tensor | None,
        inputs: Sequence[Tensor] = (),
    ) -> Stack:
        """The whole call, from arguments as the caller gave them."""
        layout = self.layout
        x, resets = layout.x(input), layout.resets(resets, input)
        inputs = self.step_inputs(inputs, x.shape) if inputs else ()
        return self.stack(x, states and layout.states(states), layout.lengths(lengths, x), resets, inputs)

    def step_inputs(self, inputs: Sequence[Tensor], x_shape: Sequence[int]) -> list[Tensor]:
        """Those of the steps as `Stack.inputs`, beside x (T, B, I)."""
        sizes = (len(self.weights), *x_shape[:2], self.state_shapes[-1][-1])
        named = zip(self.configuration.cell.inputs, inputs, strict=True)
        return [self.layout.step_input(name, value, sizes) for name, value in named]


def check(
    configuration: Configuration,
    weights: Weights,
    input: Any,
    hx: Any,
    lengths: Lengths | None,
    resets: Tensor | None,
    return_states: bool,
    inputs: Sequence[Any] = (),
) -> tuple[Checked, Stack]:
    """Raises what is wrong with a call's arguments; computes nothing. Of what is right, how calls like it are laid out,
    and this one laid out so.

    Raises:
        ValueError, RuntimeError, TypeError: as torch.nn for the same mistakes.
    """
    states = _as_states(configuration, hx)
    if not configuration.is_cell and not isinstance(input, (Tensor, PackedSequence)):
        got = type(input).__name__
        raise TypeError(f"{configuration.operator}: input must be a tensor or a PackedSequence, got {got}")
    packed = isinstance(input, PackedSequence)
    if packed and lengths is not None:
        raise ValueError(f"{configuration.operator}: a PackedSequence has its own lengths, lengths must be None")
    for name, value in zip(configuration.cell.inputs, inputs, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"{configuration.operator}: {name} must be a tensor, got {type(value).__name__}")
    _check_memory(configuration, weights, input if packed else (input,), states, lengths, resets, inputs)
    layout = _layout(configuration, weights, input, states)
    # In the order in which torch.nn finds mistakes.
    ready_resets = layout.resets(resets, input)
    x = layout.x(input)
    ready_lengths = layout.lengths(lengths, x)
    expected = checks.state_shapes(configuration.cell, weights, x.shape[1])
    ready_states = None
    if states is not None:
        if packed:
            checks.state_sizes(states, expected)
        ready_states = layout.states(states)
        checks.state_sizes(ready_states, expected)
    checks.weight_shapes(configuration.operator, configuration.cell, configuration.directions, x.shape[-1], weights)
    checks.same_device_and_dtype(x, ready_states or (), [tensor for tensors in weights for tensor in tensors])
    backend = requested(configuration.backend and check_name(configuration.backend))
    dtype = checks.autocast_dtype(x)
    checked = Checked(configuration, layout, weights, expected, backend, dtype, return_states)
    ready_inputs = checked.step_inputs(inputs, x.shape)
    checks.step_inputs(configuration.operator, configuration.cell, ready_inputs, x)
    return checked, checked.stack(x, ready_states, ready_lengths, ready_resets, ready_inputs)


def _layout(configuration: Configuration, weights: Weights, input: Any, states: States | None) -> Layout:
    if configuration.is_cell:
        return Layout(configuration, input.dim())
    if isinstance(input, PackedSequence):
        layout = PackedLayout(configuration, input)
        checks.dtype_and_size(input.data, weights[0][0])
        return layout
    checks.layer_input(configuration.label, input)
    if states is not None:
        checks.state_dims(input, states)
    checks.dtype_and_size(input, weights[0][0])
    return Layout(configuration, input.dim())


def _as_states(configuration: Configuration, hx: Any) -> States | None:
    if hx is None:
        return None
    if not configuration.is_cell:
        checks.count_of_states(configuration.label, hx, configuration.cell.states)
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _check_memory(
    configuration: Configuration,
    weights: Weights,
    input: Sequence[Any],
    states: States | None,
    lengths: Any,
    resets: Any,
    inputs: Sequence[Tensor],
) -> None:
    """That there is memory behind everything, before anything reads it. `input` are the fields of a PackedSequence, or
    the input alone; what is no tensor is found elsewhere."""

    def named() -> dict[str, Any]:
        fields = PackedSequence._fields if len(input) > 1 else ("the input",)
        return {
            **{field: (value,) for field, value in zip(fields, input, strict=True)},
            "hx": states or (),
            "lengths": (lengths,),
            "resets": (resets,),
            "a parameter": [tensor for group in weights for tensor in group],
            **{name: (value,) for name, value in zip(configuration.cell.inputs, inputs, strict=True)},
        }

    parameters = [tensor for group in weights for tensor in group]
    tensors = (*input, *(states or ()), lengths, resets, *parameters, *inputs)
    checks.memory(configuration.operator, tensors, named)
