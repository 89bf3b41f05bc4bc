"""Single steps in inference, with as little as possible between the call and the kernel.

A module that is called for one step at a time, with the state that it gave the time before, would spend most of a call
on checks whose outcome is the same every time. Here it is kept: a call goes straight to the kernel as long as the
module's parameters are the same tensors and the arguments look as they did. Everything else takes the usual way, checks
and all. The kernel reads the parameters where they are, so that a change of their values needs no notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastrnn import ops
from fastrnn.backends import requested
from fastrnn.backends.numba import launch, ready, unpacked
from fastrnn.cells import CELLS

States = tuple[Tensor, ...]

_BACKENDS = ("auto", "numba")
"""By which the kernel may be reached."""


class _Step:
    """A module's call of one step, of which everything has been checked."""

    def __init__(self, cell_name: str, layers: Sequence[dict[str, nn.Parameter]], input: Tensor, state: Tensor):
        self.parameters = [(name, p, p.data_ptr(), p.shape) for layer in layers for name, p in layer.items()]
        self.cell_name, self.dtype, self.threads = cell_name, input.dtype, torch.get_num_threads()
        self.input_shape, self.state_shape = input.shape, state.shape
        self.zeros = torch.zeros_like(state, memory_format=torch.contiguous_format)
        self.output_like = self.zeros.new_empty((*input.shape[:-1], state.shape[-1]))
        batch = input.numel() // input.shape[-1]
        self.layer_bytes = batch * state.shape[-1] * state.itemsize
        self.launches = []
        for layer in layers:
            w_ih, w_hh, *biases = layer.values()
            sizes = (1, batch, w_ih.shape[1], w_hh.shape[1])
            plan = unpacked.plan(cell_name, input.dtype, *sizes, False, launch.available_threads())
            self.launches.append(unpacked.prepare(plan, w_ih, w_hh, biases))

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

    def run(self, input: Tensor, before: Sequence[Tensor], with_output: bool) -> tuple[Tensor | None, States]:
        """The last layer's output, if it is asked for, and the states after the step."""
        after = tuple([torch.empty_like(self.zeros) for _ in before])
        output = torch.empty_like(self.output_like) if with_output else None
        x, h0, c0 = input.data_ptr(), before[0].data_ptr(), before[-1].data_ptr()
        h, c = after[0].data_ptr(), after[-1].data_ptr()
        last = self.launches[-1]
        for one in self.launches:
            one.run(x, h0, c0, output.data_ptr() if output is not None and one is last else h, h, c)
            x, size = h, self.layer_bytes
            h0, c0, h, c = h0 + size, c0 + size, h + size, c + size
        return output, after


_steps: WeakKeyDictionary[nn.Module, _Step] = WeakKeyDictionary()


def is_possible(input: Any) -> bool:
    """Whether nobody asks for gradients or watches what is called, so that only the results matter."""
    return (
        not torch.is_grad_enabled()
        and type(input) is Tensor
        and not ops.dispatcher_is_watched()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
    )


def step(
    module: nn.Module,
    backend: str | None,
    cell_name: str,
    input: Tensor,
    before: Sequence[Any] | None,
    with_output: bool,
) -> tuple[Tensor | None, States] | None:
    """The output, if it is asked for, and the states after one step; None where no such step is remembered.

    `before` are the states before the step, as the module was called; None for zeros.
    """
    known = _steps.get(module)
    if known is None or known.cell_name != cell_name or requested(backend) not in _BACKENDS:
        return None
    states = len(CELLS[cell_name].states)
    if before is None:
        before = (known.zeros,) * states
    elif type(before) is not tuple or len(before) != states:
        return None
    return known.run(input, before, with_output) if known.serves(module, input, before) else None


def remember(
    module: nn.Module, backend: str | None, cell_name: str, names: Sequence[Sequence[str]], input: Tensor, state: Tensor
) -> None:
    """Keeps what is needed to repeat a call of one step, which was checked and has succeeded.

    `names` are those of each layer's parameters: weight_ih, weight_hh, and the biases if any. `state` has the shape of
    the module's states.
    """
    known = _steps.get(module)
    if known is not None and known.cell_name == cell_name and known.serves(module, input, ()):
        return
    layers: list[dict[str, Any]] = [{name: module._parameters.get(name) for name in layer} for layer in names]
    parameters = [p for layer in layers for p in layer.values()]
    if (
        input.dtype in unpacked.DTYPES
        and input.is_cpu
        and input.numel() > 0
        and requested(backend) in _BACKENDS
        and ready() is None
        and all(type(p) is nn.Parameter and p.is_contiguous() and p.dtype is input.dtype for p in parameters)
        and unpacked.pays(1, input.numel() // input.shape[-1])
    ):
        _steps[module] = _Step(cell_name, layers, input, state)
