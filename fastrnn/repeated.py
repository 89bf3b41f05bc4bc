"""Repeated calls, with as little as possible between the call and the kernel.

A module that is called again and again with arguments of the same shape would spend most of a small call on checks
whose outcome is the same every time. Here it is kept: a call goes straight to the kernel as long as the module's
parameters are the same tensors and the arguments look as they did. Everything else takes the usual way, checks and all.
The kernel reads the parameters where they are, so that a change of their values needs no notice.

What a call depends on beside its arguments and parameters is its key: the module's attributes, and the backend that was
asked for. Keys are only compared, so that a changed attribute needs no notice either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastrnn import backends, ops
from fastrnn.backends.cost import Sizes, why_torch
from fastrnn.backends.numba import ready, unpacked
from fastrnn.remembered import (
    Form,
    Inference,
    Known,
    OnGPU,
    Prepacked,
    States,
    Torch,
    TorchCell,
    Training,
    TrainingOnGPU,
    sizes_of,
)
from fastrnn.watched_weights import Values, is_readable

_BACKENDS = ("auto", "numba")
"""By which the CPU's kernels may be reached."""


_calls: dict[type[Known], WeakKeyDictionary[nn.Module, Any]] = {
    Inference: WeakKeyDictionary(),
    Training: WeakKeyDictionary(),
}
"""The last call of each module, of either kind. A module to which one of its own parameters refers is never freed."""


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
        and not torch._C._is_any_autocast_enabled()
    )


def _kind(module: nn.Module, input: Tensor, before: Sequence[Any] | None) -> type[Known]:
    """Whether gradients will be asked for."""
    if not torch.is_grad_enabled():
        return Inference
    if input.requires_grad:
        return Training
    for parameter in module._parameters.values():
        if parameter is not None and parameter.requires_grad:
            return Training
    given = before if type(before) is tuple else ()
    return Training if any(isinstance(state, Tensor) and state.requires_grad for state in given) else Inference


def call(
    module: nn.Module, key: tuple[Any, ...], input: Tensor, before: Sequence[Any] | None
) -> tuple[Tensor | None, States] | None:
    """The output, but for a cell, and the states after the last step; None where no such call is remembered.

    `before` are the states before the first step, as the module was called; None for zeros.
    """
    known = _calls[_kind(module, input, before)].get(module)
    if known is None or known.key != key:
        return None
    if before is None:
        return known.run(input, None) if known.serves(module, input, ()) else None
    if type(before) is tuple and len(before) == known.states and known.serves(module, input, before):
        return known.run(input, before)  # type: ignore[no-any-return]
    return None


def remember(
    module: nn.Module,
    key: tuple[Any, ...],
    form: Form,
    names: Sequence[Sequence[str]],
    input: Tensor,
    before: Sequence[Any] | None,
    state: Tensor,
) -> None:
    """Keeps what is needed to repeat a call, which was checked and has succeeded, in place of one that is kept once it
    has come twice.

    `before` are the states as in `call`, `key` is the same of values that will not change, `names` those of the
    parameters of each layer and direction: weight_ih, weight_hh, and the biases if any. `state` has the shape of the
    module's states.
    """
    kind = _kind(module, input, before)
    known = _calls[kind].get(module)
    if known is not None:
        if known.key == key and known.serves(module, input, ()):
            return
        if known.other != (key, input.shape):
            # Where every call is of another length, none is worth keeping.
            known.other = (key, input.shape)
            return
    groups: list[dict[str, Any]] = [{name: module._parameters.get(name) for name in group} for group in names]
    parameters = [p for group in groups for p in group.values()]
    if (
        input.numel() > 0
        and (input.is_cpu or input.is_cuda)
        and all(is_readable(p) and p.dtype is input.dtype and p.device == input.device for p in parameters)
    ):
        layers = [groups[first : first + form.directions] for first in range(0, len(groups), form.directions)]
        chosen = (_chosen if input.is_cpu else _chosen_on_gpu)(kind, form, layers, input, state)
        if chosen is Prepacked and not Values.can_be_watched(parameters):
            chosen = Inference
        if chosen is not None:
            with torch.no_grad():
                known = chosen(form, layers, input, state)
            known.key = key
            _calls[kind][module] = known


Layers = Sequence[Sequence[dict[str, Any]]]


def _chosen(kind: type[Known], form: Form, layers: Layers, input: Tensor, state: Tensor) -> type[Known] | None:
    """What serves calls of a kind; None where they keep to the usual way."""
    if form.backend not in _BACKENDS or ready() is not None or input.dtype not in unpacked.DTYPES:
        return None
    if form.prepacked and kind is Inference:
        return Prepacked
    steps, batch, *_ = sizes_of(form, input)
    hidden, training = state.shape[-1], kind is Training
    sizes = Sizes(
        form.cell_name,
        steps,
        batch,
        input.shape[-1],
        hidden,
        hidden,
        form.directions,
        len(layers),
        input.dtype,
        training,
        form.cell,
    )
    if form.backend == "auto" and why_torch(sizes):
        return TorchCell if form.cell else Torch
    return None if form.cell and training else kind


def _chosen_on_gpu(kind: type[Known], form: Form, layers: Layers, input: Tensor, state: Tensor) -> type[Known] | None:
    """As `_chosen`, of a call on a GPU."""
    if form.cell or form.backend not in ("auto", *backends.GPU_BACKENDS):
        return None
    with torch.no_grad():
        known = Known(form, layers, input, state)
        call = known.as_call(input, known.zero_states())
        first = call.layer(0, call.x)
    if backends.aten_serves(form.backend, call, first, kind is Training):
        return Torch
    if backends.operator_backend(form.backend, first) == "reference":
        return None
    return TrainingOnGPU if kind is Training else OnGPU
