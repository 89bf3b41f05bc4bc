"""Repeated calls, with as little as possible between the call and the kernel.

A module that is called again and again with arguments of the same shape would spend most of a small call on checks
whose outcome is the same every time. Here it is kept: a call goes straight to the kernel as long as the module's
parameters are the same tensors and the arguments look as they did. Everything else takes the usual way, checks and all.
The kernel reads the parameters where they are, so that a change of their values needs no notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastrnn import ops
from fastrnn.backends import aten
from fastrnn.backends.call import Call
from fastrnn.backends.layer import Forward
from fastrnn.backends.numba import prepared, ready, unpacked, workspace
from fastrnn.backends.preference import why_torch
from fastrnn.cells import CELLS

States = tuple[Tensor, ...]

_BACKENDS = ("auto", "numba")
"""By which the kernel may be reached."""


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


class _Call:
    """A module's call, of which everything has been checked."""

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        self.parameters = [
            (name, p, p.data_ptr(), p.shape) for layer in layers for group in layer for name, p in group.items()
        ]
        self.form, self.dtype, self.threads = form, input.dtype, torch.get_num_threads()
        self.input_shape, self.state_shape = input.shape, state.shape
        self.zeros = torch.zeros_like(state, memory_format=torch.contiguous_format)
        self.sizes = _sizes(form, input)
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
            tensor.is_cpu
            and tensor.dtype is self.dtype
            and tensor.layout is torch.strided
            and tensor.is_contiguous()
            and not tensor.is_neg()
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


class _Inference(_Call):
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


class _Prepacked(_Inference):
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


class _Training(_Call):
    """With gradients."""

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        super().__init__(form, layers, input, state)
        self.cell = CELLS[form.cell_name]
        self.launches = [
            prepared.prepare(form.cell_name, sizes, weights)
            for sizes, weights in zip(self.layer_sizes(), self.weights, strict=True)
        ]

    def run(self, input: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, States]:
        """The last layer's output and the states after the last step."""
        x, states0 = self.batched(input, before)
        results = []
        for number in range(len(self.launches)):
            results.append(self._layer(number, x, states0))
            x = results[-1].states[0]
        after = tuple(results[0].finals)
        if len(results) > 1:
            after = tuple(torch.cat(parts) for parts in zip(*(result.finals for result in results), strict=True))
        return self.as_given(x, after)

    def _layer(self, number: int, x: Tensor, states0: Sequence[Tensor]) -> Forward:
        weights, directions = self.weights[number], self.form.directions
        first = number * directions
        if len(self.launches) > 1:
            states0 = [state[first : first + directions] for state in states0]
        one, cell = self.launches[number], self.cell
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

        groups: list[Sequence[Any]] = [
            [x],
            [w[0] for w in weights],
            [w[1].unsqueeze(0) for w in weights],
            [bias for w in weights for bias in w[2:]],
            [],
            states0,
            [None],
            [None],
        ]
        return ops.differentiable(cell, compute, (False, True, True, "numba"), groups)


class _Torch(_Call):
    """By torch's kernels, with or without gradients."""

    def run(self, input: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, States]:
        """The output and the states after the last step."""
        form = self.form
        weights = [group for layer in self.weights for group in layer]
        x, states0 = self.batched(input, before)
        call = Call(
            form.cell_name, x, tuple(states0), weights, bidirectional=form.directions == 2, training=form.training
        )
        return self.as_given(*aten.run(call))


_calls: dict[type[_Call], WeakKeyDictionary[nn.Module, Any]] = {
    _Inference: WeakKeyDictionary(),
    _Training: WeakKeyDictionary(),
}
"""The last call of each module, of either kind. A module to which one of its own parameters refers is never freed."""

_optimizer_steps = 0
"""Of all optimizers, since weights were prepacked first."""


@cache
def count_optimizer_steps() -> None:
    """From the first call on: torch's fused optimizers change parameters without autograd's counting it."""

    def count(*_: Any) -> None:
        global _optimizer_steps
        _optimizer_steps += 1

    register_optimizer_step_post_hook(count)


def forget(module: nn.Module) -> None:
    """Drops what is remembered of a module's calls."""
    for calls in _calls.values():
        calls.pop(module, None)


def is_possible(input: Any) -> bool:
    """Whether nobody watches what is called, so that only the results and their gradients matter."""
    return (
        type(input) is Tensor
        and not ops.dispatcher_is_watched()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
    )


def _kind(module: nn.Module, input: Tensor, before: Sequence[Any] | None) -> type[_Call]:
    """Whether gradients will be asked for."""
    if not torch.is_grad_enabled():
        return _Inference
    given = (*module._parameters.values(), input, *(before if type(before) is tuple else ()))
    return _Training if any(isinstance(one, Tensor) and one.requires_grad for one in given) else _Inference


def call(
    module: nn.Module, form: Form, input: Tensor, before: Sequence[Any] | None
) -> tuple[Tensor | None, States] | None:
    """The output, but for a cell, and the states after the last step; None where no such call is remembered.

    `before` are the states before the first step, as the module was called; None for zeros.
    """
    known = _calls[_kind(module, input, before)].get(module)
    if known is None or known.form != form:
        return None
    states = len(CELLS[form.cell_name].states)
    if before is None:
        before = (known.zeros,) * states
    elif type(before) is not tuple or len(before) != states:
        return None
    if not known.serves(module, input, before):
        return None
    return known.run(input, before)  # type: ignore[no-any-return]


def remember(
    module: nn.Module,
    form: Form,
    names: Sequence[Sequence[str]],
    input: Tensor,
    before: Sequence[Any] | None,
    state: Tensor,
) -> None:
    """Keeps what is needed to repeat a call, which was checked and has succeeded, in place of one that is kept once it
    has come twice.

    `before` are the states as in `call`, `names` those of the parameters of each layer and direction: weight_ih,
    weight_hh, and the biases if any. `state` has the shape of the module's states.
    """
    kind = _kind(module, input, before)
    known = _calls[kind].get(module)
    if known is not None:
        if known.form == form and known.serves(module, input, ()):
            return
        if known.other != (form, input.shape):
            # Where every call is of another length, none is worth keeping.
            known.other = (form, input.shape)
            return
    groups: list[dict[str, Any]] = [{name: module._parameters.get(name) for name in group} for group in names]
    parameters = [p for group in groups for p in group.values()]
    if (
        input.dtype in unpacked.DTYPES
        and input.is_cpu
        and input.numel() > 0
        and all(type(p) is nn.Parameter and p.is_contiguous() and p.dtype is input.dtype for p in parameters)
    ):
        chosen = _chosen(kind, form, input, state)
        if chosen is _Prepacked and any(parameter.is_inference() for parameter in parameters):
            chosen = _Inference  # changes of such parameters are not counted
        if chosen is not None:
            layers = [groups[first : first + form.directions] for first in range(0, len(groups), form.directions)]
            with torch.no_grad():
                _calls[kind][module] = chosen(form, layers, input, state)


def _chosen(kind: type[_Call], form: Form, input: Tensor, state: Tensor) -> type[_Call] | None:
    """What serves calls of a kind; None where they keep to the usual way."""
    if form.backend not in _BACKENDS or ready() is not None:
        return None
    if form.prepacked and kind is _Inference:
        return _Prepacked
    steps, batch, _, _ = _sizes(form, input)
    hidden, training = state.shape[-1], kind is _Training
    few = not training and form.directions == 1 and unpacked.pays(steps, batch, hidden)
    if form.backend == "auto" and not few and why_torch(form.cell_name, steps, hidden, input.dtype, training):
        kind = _Torch
    return None if form.cell and kind is not _Inference else kind


def _sizes(form: Form, input: Tensor) -> prepared.Sizes:
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
