"""Calls of modules of which everything has been checked, and how each kind is computed again; see `repeated`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrnn import ops
from fastrnn.backends import aten, module, operator_backend, tf32
from fastrnn.backends.call import Call
from fastrnn.backends.layer import Forward, Layer
from fastrnn.backends.numba import prepared, workspace
from fastrnn.cells import CELLS
from fastrnn.watched_weights import Parameters, Values, any_freed, is_freed

States = tuple[Tensor, ...]

SMALL = 1 << 14
"""Elements of an output of which a tensor like it is kept, to make others by."""


class Form(NamedTuple):
    """What a module computes, and how its arguments are laid out."""

    cell_name: str
    directions: int = 1
    batch_first: bool = False
    cell: bool = False
    """whether it is a cell's module, whose input has no dimension of time"""
    training: bool = False
    """as `nn.Module.training`, which torch's kernels are told"""
    backend: str = "auto"
    """the one that was asked for"""
    prepacked: bool = False
    """whether inference may lay the weights out once"""


class Known:
    """A module's call, of which everything has been checked."""

    key: tuple[Any, ...]
    """of the call, as `repeated.call` takes it"""
    other: tuple[Any, ...] | None = None
    """what the last call that it did not serve looked like"""

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        self.parameters = Parameters([named for layer in layers for group in layer for named in group.items()])
        self.form, self.dtype, self.device, self.threads = form, input.dtype, input.device, torch.get_num_threads()
        self.states = len(CELLS[form.cell_name].states)
        self.input_shape, self.state_shape = input.shape, state.shape
        self.zeros = torch.zeros_like(state, memory_format=torch.contiguous_format)
        self.sizes = sizes_of(form, input)
        self.hidden = state.shape[-1]
        self.swaps = form.batch_first and input.dim() == 3
        self.weights = [[list(group.values()) for group in layer] for layer in layers]

    def serves(self, module: nn.Module, input: Tensor, states: Sequence[Any]) -> bool:
        """Whether nothing that was checked has changed, but for memory that was given back, which `run` looks for."""
        if input.shape != self.input_shape or not self._fits(input) or torch.get_num_threads() != self.threads:
            return False
        for state in states:
            if type(state) is not Tensor or state.shape != self.state_shape or not self._fits(state):
                return False
        return self._has_weights_of(module)

    def _has_weights_of(self, module: nn.Module) -> bool:
        return self.parameters.are_those_of(module)

    def _fits(self, tensor: Tensor) -> bool:
        return (
            tensor.device == self.device
            and tensor.dtype is self.dtype
            and tensor.layout is torch.strided
            and tensor.is_contiguous()
            and not tensor.is_neg()
        )

    def run(self, input: Tensor, before: States | None) -> tuple[Tensor | None, States] | None:
        """The output, but for a cell, and the states after the last step; None where an argument has no memory.

        `before` are the states before the first step, None for zeros; all as `serves` approves.
        """
        raise NotImplementedError

    def zero_states(self) -> tuple[Tensor, ...]:
        """What a call without states begins with; read only.

        On a GPU they are cleared anew: another stream, or a graph that is captured, must not depend on this memory.
        """
        zeros = torch.zeros_like(self.zeros) if self.zeros.is_cuda else self.zeros
        return (zeros,) * self.states

    def as_call(self, input: Tensor, before: Sequence[Tensor]) -> Call:
        """The whole call, as torch's kernels are asked for it."""
        form = self.form
        weights = [group for layer in self.weights for group in layer]
        x, states0 = self.batched(input, before)
        return Call(
            form.cell_name, x, tuple(states0), weights, bidirectional=form.directions == 2, training=form.training
        )

    def batched(self, input: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """The input of layers as (T, B, I), and the states with a batch."""
        if input.dim() == 2:
            return input.unsqueeze(1), [state.unsqueeze(1) for state in before]
        return input.transpose(0, 1) if self.swaps else input, before

    def as_given(self, output: Tensor, after: States) -> tuple[Tensor, States]:
        """The other way round: what came of `batched` in the input's layout."""
        if len(self.input_shape) == 2:
            return output.squeeze(1), tuple(state.squeeze(1) for state in after)
        return output.transpose(0, 1) if self.swaps else output, after

    def layer_sizes(self) -> list[prepared.Sizes]:
        """Of each layer's input."""
        steps, batch = self.sizes[:2]
        width = self.form.directions * self.hidden
        return [self.sizes, *[prepared.Sizes(steps, batch, batch * width, width)] * (len(self.weights) - 1)]


class Inference(Known):
    """Without gradients: nothing is kept but the output and the final states."""

    keeps_weights = False

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        super().__init__(form, layers, input, state)
        steps, batch = self.sizes[:2]
        output_shape = (steps, batch) if input.dim() == 3 else input.shape[:-1]
        self.output_shape = (*output_shape, form.directions * self.hidden)
        self.like_output = self.zeros.new_empty(self.output_shape) if prod(self.output_shape) <= SMALL else None
        self.zeros_address = self.zeros.data_ptr()
        self.state_bytes = form.directions * batch * self.hidden * state.itemsize
        self.one_step = steps == 1 and form.directions == 1
        self.launches = [
            prepared.prepare_inference(form.cell_name, sizes, weights, keep_weights=self.keeps_weights)
            for sizes, weights in zip(self.layer_sizes(), self.weights, strict=True)
        ]

    def run(self, input: Tensor, before: States | None) -> tuple[Tensor | None, States] | None:
        """As `Known.run`."""
        x = input.data_ptr()
        if before is None:
            h0 = c0 = self.zeros_address
            freed = is_freed(input, x)
        else:
            h0, c0 = before[0].data_ptr(), before[-1].data_ptr()
            freed = is_freed(input, x) or is_freed(before[0], h0) or is_freed(before[-1], c0)
        if freed:
            return None
        after = tuple([torch.empty_like(self.zeros) for _ in range(self.states)])
        h, c = after[0].data_ptr(), after[-1].data_ptr()
        output, last = None, self.launches[-1]
        for one in self.launches:
            below = output  # which this layer reads
            # In a single step a layer's output is its h.
            needless = self.one_step and (one is not last or self.form.cell)
            output = None if needless else self._new_output()
            ys = h if output is None else output.data_ptr()
            one.run(x, h0, c0, ys, h, c)
            x, size = ys, self.state_bytes
            h0, c0, h, c = h0 + size, c0 + size, h + size, c + size
        del below
        return output.transpose(0, 1) if output is not None and self.swaps else output, after

    def _new_output(self) -> Tensor:
        if self.like_output is None:
            return self.zeros.new_empty(self.output_shape)
        return torch.empty_like(self.like_output)  # half a microsecond sooner


class Prepacked(Inference):
    """Without gradients, by weights as they were when the call was remembered."""

    keeps_weights = True

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        # Before the weights are read: what changes while they are laid out is a change.
        self.values = Values([parameter for layer in layers for group in layer for parameter in group.values()])
        super().__init__(form, layers, input, state)

    def _has_weights_of(self, module: nn.Module) -> bool:
        return super()._has_weights_of(module) and self.values.are_unchanged()


class ByLayers(Known):
    """Each layer by a call of its own."""

    def run(self, input: Tensor, before: States | None) -> tuple[Tensor, States] | None:
        """As `Known.run`."""
        if any_freed(input, *(before or ())):
            return None
        x, states0 = self.batched(input, self.zero_states() if before is None else before)
        directions, results = self.form.directions, []
        for number in range(len(self.weights)):
            first = number * directions
            own = [state[first : first + directions] for state in states0] if len(self.weights) > 1 else states0
            results.append(self.layer(number, x, own))
            x = results[-1].states[0]
        after = tuple(results[0].finals)
        if len(results) > 1:
            after = tuple(torch.cat(parts) for parts in zip(*(result.finals for result in results), strict=True))
        return self.as_given(x, after)

    def layer(self, number: int, x: Tensor, states0: Sequence[Tensor]) -> Forward:
        """Of the layer with that number, x (T, B, ·) and the states (directions, B, H) before the first step."""
        raise NotImplementedError

    def as_layer(self, number: int, x: Tensor, states0: Sequence[Tensor]) -> Layer:
        """What the operators are called with."""
        weights = self.weights[number]
        return Layer(
            self.form.cell_name,
            x,
            w_ih=[w[0] for w in weights],
            w_hh=[w[1].unsqueeze(0) for w in weights],
            biases=[bias for w in weights for bias in w[2:]],
            extras=[],
            states0=list(states0),
            lengths=None,
            resets=None,
            reverse=False,
        )


class Training(ByLayers):
    """With gradients."""

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        super().__init__(form, layers, input, state)
        self.cell = CELLS[form.cell_name]
        self.launches = [
            prepared.prepare(form.cell_name, sizes, weights)
            for sizes, weights in zip(self.layer_sizes(), self.weights, strict=True)
        ]

    def layer(self, number: int, x: Tensor, states0: Sequence[Tensor]) -> Forward:
        """With what backward needs."""
        one, cell, directions = self.launches[number], self.cell, self.form.directions
        steps, batch, hidden = self.sizes.steps, self.sizes.batch, self.hidden

        def run() -> Forward:
            outputs = [workspace.empty((steps, batch, directions * hidden), x.dtype) for _ in cell.states]
            finals = [torch.empty_like(state, memory_format=torch.contiguous_format) for state in states0]
            kept = (directions, steps, batch, len(cell.saved) * hidden)
            saved = [workspace.empty(kept, x.dtype)] if cell.saved else []
            one.run(
                x.data_ptr(),
                states0[0].data_ptr(),
                states0[-1].data_ptr(),
                outputs[0].data_ptr(),
                finals[0].data_ptr(),
                finals[-1].data_ptr(),
                outputs[1].data_ptr() if len(outputs) > 1 else 0,
                saved[0].data_ptr() if saved else 0,
            )
            return Forward(outputs, finals, saved)

        layer = self.as_layer(number, x, states0)
        return ops.differentiable(layer, run, history=True, gates=True, backend="numba")


class OnGPU(ByLayers):
    """Without gradients, by the backend for GPUs that served the call when it was remembered."""

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        super().__init__(form, layers, input, state)
        self.settings = _settings()
        call = self.as_call(input, self.zero_states())
        self.backend = module(operator_backend(form.backend, call.layer(0, call.x)))

    def serves(self, module: nn.Module, input: Tensor, states: Sequence[Any]) -> bool:
        """As `Known.serves`; torch's settings decide which backend serves a call."""
        return self.settings == _settings() and super().serves(module, input, states)

    def layer(self, number: int, x: Tensor, states0: Sequence[Tensor]) -> Forward:
        """Nothing is kept."""
        return self._compute(self.as_layer(number, x, states0), gradients=False)

    def _compute(self, layer: Layer, gradients: bool) -> Forward:
        return self.backend.forward(layer, history=gradients, gates=gradients)  # type: ignore[no-any-return]


class TrainingOnGPU(OnGPU):
    """The same with gradients."""

    def layer(self, number: int, x: Tensor, states0: Sequence[Tensor]) -> Forward:
        """With what backward needs."""
        layer = self.as_layer(number, x, states0)
        run = partial(self._compute, layer, gradients=True)
        return ops.differentiable(layer, run, history=True, gates=True, backend=self.form.backend)


def _settings() -> tuple[bool, ...]:
    """What the choice of a backend on a GPU looks at beside the call."""
    return tf32.allowed(), torch.backends.cudnn.enabled


class Torch(Known):
    """By torch's kernels, with or without gradients."""

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        super().__init__(form, layers, input, state)
        self.settings = _settings() if input.is_cuda else None

    def serves(self, module: nn.Module, input: Tensor, states: Sequence[Any]) -> bool:
        """As `OnGPU.serves`, on a GPU."""
        return (self.settings is None or self.settings == _settings()) and super().serves(module, input, states)

    def run(self, input: Tensor, before: States | None) -> tuple[Tensor, States] | None:
        """As `Known.run`."""
        if any_freed(input, *(before or ())):
            return None
        return self.as_given(*aten.run(self.as_call(input, self.zero_states() if before is None else before)))


class TorchCell(Known):
    """A cell's step by torch's kernel: a loop of training steps is written with nothing else between them."""

    def run(self, input: Tensor, before: States | None) -> tuple[None, States] | None:
        """As `Known.run`."""
        if any_freed(input, *(before or ())):
            return None
        states, ((weights,),) = self.zero_states() if before is None else before, self.weights
        if input.dim() == 2:
            return None, aten.step(self.form.cell_name, input, states, weights)
        batch = [state.unsqueeze(0) for state in states]
        after = aten.step(self.form.cell_name, input.unsqueeze(0), batch, weights)
        return None, tuple(state.squeeze(0) for state in after)


def sizes_of(form: Form, input: Tensor) -> prepared.Sizes:
    """Of a contiguous input of a module: (T, B, I), (B, T, I) or (T, I), of a cell (B, I) or (I,)."""
    width = input.shape[-1]
    if form.cell:
        return prepared.Sizes(1, input.numel() // width, input.numel(), width)
    if input.dim() == 2:
        return prepared.Sizes(input.shape[0], 1, width, width)
    first, second, _ = input.shape
    if form.batch_first:
        return prepared.Sizes(second, first, width, second * width)
    return prepared.Sizes(first, second, second * width, width)
