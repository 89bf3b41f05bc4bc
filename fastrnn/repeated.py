"""Repeated calls in inference, with as little as possible between the call and the kernel.

A module that is called again and again with arguments of the same shape would spend most of a small call on checks
whose outcome is the same every time. Here it is kept: a call goes straight to the kernel as long as the module's
parameters are the same tensors and the arguments look as they did. Everything else takes the usual way, checks and all.
The kernel reads the parameters where they are, so that a change of their values needs no notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastrnn import ops
from fastrnn.backends import requested
from fastrnn.backends.numba import inference, ready, unpacked
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


class _Call:
    """A module's call, of which everything has been checked."""

    def __init__(self, form: Form, layers: Sequence[Sequence[dict[str, nn.Parameter]]], input: Tensor, state: Tensor):
        self.parameters = [
            (name, p, p.data_ptr(), p.shape) for layer in layers for group in layer for name, p in group.items()
        ]
        self.form, self.dtype, self.threads = form, input.dtype, torch.get_num_threads()
        self.input_shape, self.state_shape = input.shape, state.shape
        self.zeros = torch.zeros_like(state, memory_format=torch.contiguous_format)
        sizes = _sizes(form, input)
        hidden = state.shape[-1]
        self.swaps = form.batch_first and input.dim() == 3
        output_shape = (sizes.steps, sizes.batch) if input.dim() == 3 else input.shape[:-1]
        self.output_like = self.zeros.new_empty((*output_shape, form.directions * hidden))
        self.state_bytes = form.directions * sizes.batch * hidden * state.itemsize
        self.one_step = sizes.steps == 1 and form.directions == 1
        self.launches = []
        for layer in layers:
            self.launches.append(inference.prepare(form.cell_name, sizes, [list(group.values()) for group in layer]))
            sizes = inference.Sizes(
                sizes.steps, sizes.batch, sizes.batch * form.directions * hidden, form.directions * hidden
            )

    def serves(self, module: nn.Module, input: Tensor, states: Sequence[Any]) -> bool:
        """Whether nothing that was checked has changed."""
        if input.shape != self.input_shape or not self._fits(input) or torch.get_num_threads() != self.threads:
            return False
        for state in states:
            if type(state) is not Tensor or state.shape != self.state_shape or not self._fits(state):
                return False
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

    def run(self, input: Tensor, before: Sequence[Tensor]) -> tuple[Tensor | None, States]:
        """The last layer's output, but for a cell, and the states after the last step."""
        after = tuple([torch.empty_like(self.zeros) for _ in before])
        x, h0, c0 = input.data_ptr(), before[0].data_ptr(), before[-1].data_ptr()
        h, c = after[0].data_ptr(), after[-1].data_ptr()
        output, last = None, self.launches[-1]
        for one in self.launches:
            between = self.one_step and (one is not last or self.form.cell)
            below, output = output, None if between else torch.empty_like(self.output_like)
            ys = h if output is None else output.data_ptr()
            one.run(x, h0, c0, ys, h, c)
            x, size = ys, self.state_bytes
            h0, c0, h, c = h0 + size, c0 + size, h + size, c + size
        del below
        return output.transpose(0, 1) if output is not None and self.swaps else output, after


_calls: WeakKeyDictionary[nn.Module, _Call] = WeakKeyDictionary()


def is_possible(input: Any) -> bool:
    """Whether nobody asks for gradients or watches what is called, so that only the results matter."""
    return (
        not torch.is_grad_enabled()
        and type(input) is Tensor
        and not ops.dispatcher_is_watched()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
    )


def call(
    module: nn.Module, backend: str | None, form: Form, input: Tensor, before: Sequence[Any] | None
) -> tuple[Tensor | None, States] | None:
    """The output, but for a cell, and the states after the last step; None where no such call is remembered.

    `before` are the states before the first step, as the module was called; None for zeros.
    """
    known = _calls.get(module)
    if known is None or known.form != form or requested(backend) not in _BACKENDS:
        return None
    states = len(CELLS[form.cell_name].states)
    if before is None:
        before = (known.zeros,) * states
    elif type(before) is not tuple or len(before) != states:
        return None
    return known.run(input, before) if known.serves(module, input, before) else None


def remember(
    module: nn.Module, backend: str | None, form: Form, names: Sequence[Sequence[str]], input: Tensor, state: Tensor
) -> None:
    """Keeps what is needed to repeat a call, which was checked and has succeeded.

    `names` are those of the parameters of each layer and direction: weight_ih, weight_hh, and the biases if any.
    `state` has the shape of the module's states.
    """
    known = _calls.get(module)
    if known is not None and known.form == form and known.serves(module, input, ()):
        return
    groups: list[dict[str, Any]] = [{name: module._parameters.get(name) for name in group} for group in names]
    parameters = [p for group in groups for p in group.values()]
    if (
        input.dtype in unpacked.DTYPES
        and input.is_cpu
        and input.numel() > 0
        and _is_chosen(backend, form, input, state)
        and all(type(p) is nn.Parameter and p.is_contiguous() and p.dtype is input.dtype for p in parameters)
    ):
        layers = [groups[first : first + form.directions] for first in range(0, len(groups), form.directions)]
        _calls[module] = _Call(form, layers, input, state)


def _is_chosen(backend: str | None, form: Form, input: Tensor, state: Tensor) -> bool:
    """Whether this backend is the one that serves the call."""
    asked = requested(backend)
    if asked not in _BACKENDS or ready() is not None:
        return False
    steps, batch, _, _ = _sizes(form, input)
    if asked == "numba" or (form.directions == 1 and unpacked.pays(steps, batch)):
        return True
    return why_torch(form.cell_name, steps, state.shape[-1], input.dtype, training=False) is None


def _sizes(form: Form, input: Tensor) -> inference.Sizes:
    """Of a contiguous input of a module: (T, B, I), (B, T, I) or (T, I), of a cell (B, I) or (I,)."""
    width = input.shape[-1]
    if form.cell:
        return inference.Sizes(1, input.numel() // width, input.numel(), width)
    if input.dim() == 2:
        return inference.Sizes(input.shape[0], 1, width, width)
    first, second, _ = input.shape
    if form.batch_first:
        return inference.Sizes(second, first, width, second * width)
    return inference.Sizes(first, second, second * width, width)
