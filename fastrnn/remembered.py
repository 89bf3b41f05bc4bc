"""Calls of modules of which everything has been checked, and how each kind is computed again; see `repeated`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastrnn import ops
from fastrnn.backends import aten, module, operator_backend, tf32
from fastrnn.backends.call import Call
from fastrnn.backends.layer import Forward, Layer
from fastrnn.backends.numba import prepared, workspace
from fastrnn.cells import CELLS

States = tuple[Tensor, ...]


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

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        self.parameters = [
            (name, p, p.data_ptr(), p.shape) for layer in layers for group in layer for name, p in group.items()
        ]
        self.form, self.dtype, self.device, self.threads = form, input.dtype, input.device, torch.get_num_threads()
        self.input_shape, self.state_shape = input.shape, state.shape
        self.zeros = torch.zeros_like(state, memory_format=torch.contiguous_format)
        self.sizes = sizes_of(form, input)
        self.hidden = state.shape[-1]
        self.swaps = form.batch_first and input.dim() == 3
        self.weights = [[list(group.values()) for group in layer] for layer in layers]
        self.other: tuple[Form, torch.Size] | None = None
        """what the last call that it did not serve looked like"""

    def serves(self, module: nn.Module, input: Tensor, states: Sequence[Any]) -> bool:
        """Whether nothing that was checked has changed."""
        if input.shape != self.input_shape or not self._fits(input) or torch.get_num_threads() != self.threads:
            return False
        for state in states:
            if type(state) is not Tensor or state.shape != self.state_shape or not self._fits(state):
                return False
        return self._knows_parameters(module)

    def _knows_parameters(self, module: nn.Module) -> bool:
        current = module._parameters
        for name, parameter, address, shape in self.parameters:
            if (
                current.get(name) is not parameter
                or parameter.data_ptr() != address
                or parameter.dtype is not self.dtype
                or parameter.shape != shape
                or not parameter.is_contiguous()
            ):
                return False
        return True

    def _fits(self, tensor: Tensor) -> bool:
        return (
            tensor.device == self.device
            and tensor.dtype is self.dtype
            and tensor.layout is torch.strided
            and tensor.is_contiguous()
            and not tensor.is_neg()
        )

    def zero_states(self) -> tuple[Tensor, ...]:
        """What a call without states begins with; read only.

        On a GPU they are cleared anew: another stream, or a graph that is captured, must not depend on this memory.
        """
        zeros = torch.zeros_like(self.zeros) if self.zeros.is_cuda else self.zeros
        return (zeros,) * len(CELLS[self.form.cell_name].states)

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
        self.state_bytes = form.directions * batch * self.hidden * state.itemsize
        self.one_step = steps == 1 and form.directions == 1
        self.launches = [
            prepared.prepare_inference(form.cell_name, sizes, weights, keep_weights=self.keeps_weights)
            for sizes, weights in zip(self.layer_sizes(), self.weights, strict=True)
        ]

    def run(self, input: Tensor, before: Sequence[Tensor]) -> tuple[Tensor | None, States]:
        """The last layer's output, but for a cell, and the states after the last step."""
        after = tuple([torch.empty_like(self.zeros) for _ in before])
        x, h0, c0 = input.data_ptr(), before[0].data_ptr(), before[-1].data_ptr()
        h, c = after[0].data_ptr(), after[-1].data_ptr()
        output, last = None, self.launches[-1]
        for one in self.launches:
            below = output  # which this layer reads
            # In a single step a layer's output is its h.
            needless = self.one_step and (one is not last or self.form.cell)
            output = None if needless else self.zeros.new_empty(self.output_shape)
            ys = h if output is None else output.data_ptr()
            one.run(x, h0, c0, ys, h, c)
            x, size = ys, self.state_bytes
            h0, c0, h, c = h0 + size, c0 + size, h + size, c + size
        del below
        return output.transpose(0, 1) if output is not None and self.swaps else output, after


class Prepacked(Inference):
    """Without gradients, by weights as they were when the call was remembered."""

    keeps_weights = True

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        # Before the weights are read: what changes while they are laid out is a change.
        self.steps = _optimizer_steps
        self.versions = [p._version for layer in layers for group in layer for p in group.values()]
        super().__init__(form, layers, input, state)
        self.storages = [parameter.untyped_storage() for _, parameter, _, _ in self.parameters]
        """held, so that no other memory can come to lie at their addresses"""

    def _knows_parameters(self, module: nn.Module) -> bool:
        return (
            self.steps == _optimizer_steps
            and super()._knows_parameters(module)
            and all(p._version == version for (_, p, _, _), version in zip(self.parameters, self.versions, strict=True))
        )


class ByLayers(Known):
    """Each layer by a call of its own."""

    def run(self, input: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, States]:
        """The last layer's output and the states after the last step."""
        x, states0 = self.batched(input, before)
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

    def groups(self, number: int, x: Tensor, states0: Sequence[Tensor]) -> list[Sequence[Any]]:
        """The operator's tensors, each in a list."""
        weights = self.weights[number]
        return [
            [x],
            [w[0] for w in weights],
            [w[1].unsqueeze(0) for w in weights],
            [bias for w in weights for bias in w[2:]],
            [],
            states0,
            [None],
            [None],
        ]


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

        def compute(x: Tensor, *lists: Any) -> Forward:
            states0 = lists[4]
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

        return ops.differentiable(cell, compute, (False, True, True, "numba"), self.groups(number, x, states0))


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
        (x,), *lists, _, _ = self.groups(number, x, states0)
        return self._compute(x, lists, gradients=False)

    def _compute(self, x: Tensor, lists: Sequence[Any], gradients: bool) -> Forward:
        w_ih, w_hh, biases, extras, states0 = lists
        layer = Layer(self.form.cell_name, x, w_ih, w_hh, biases, extras, states0, None, None, reverse=False)
        return self.backend.forward(layer, history=gradients, gates=gradients)  # type: ignore[no-any-return]


class TrainingOnGPU(OnGPU):
    """The same with gradients."""

    def layer(self, number: int, x: Tensor, states0: Sequence[Tensor]) -> Forward:
        """With what backward needs."""

        def compute(x: Tensor, *lists: Any) -> Forward:
            return self._compute(x, lists[:5], gradients=True)

        flags = (False, True, True, self.form.backend)
        return ops.differentiable(CELLS[self.form.cell_name], compute, flags, self.groups(number, x, states0))


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

    def run(self, input: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, States]:
        """The output and the states after the last step."""
        return self.as_given(*aten.run(self.as_call(input, before)))


_optimizer_steps = 0
"""Of all optimizers, since weights were prepacked first."""


@cache
def count_optimizer_steps() -> None:
    """From the first call on: torch's fused optimizers change parameters without autograd's counting it."""

    def count(*_: Any) -> None:
        global _optimizer_steps
        _optimizer_steps += 1

    register_optimizer_step_post_hook(count)


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
