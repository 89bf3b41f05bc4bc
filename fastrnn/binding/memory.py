"""The plans of a module's last calls, for calls that are like them.

A module that is called again and again with arguments of the same shape would spend most of a small call on checks
whose outcome is the same every time. So its plans are kept, and a call whose signature one of them has goes straight to
it, as long as the module's parameters are the same tensors. Everything else is bound, checks and all. Kernels read the
parameters where they are, so that a change of their values needs no notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastrnn import checks, ops
from fastrnn.backends import GPU_BACKENDS, requested, tf32
from fastrnn.binding.plans import Plan
from fastrnn.lengths import Lengths
from fastrnn.watched_weights import Parameters, Values, are_readable

Form = tuple[Any, ...]
"""What a plan takes for granted of a tensor."""
Key = tuple[Any, ...]
"""All that a plan depends on beside the parameters and the states before the first step: what is equal needs no check
and no choice."""

MOST, MOST_PREPACKED = 8, 2
"""Plans of a module that are kept, and those of them whose weights are laid out, each a copy of them."""


class Kept:
    """A plan, and what must be as it was for the plan to serve a call."""

    __slots__ = ("key", "parameters", "plan", "states", "values")

    def __init__(
        self, key: Key, states: tuple[Form, ...], plan: Plan, parameters: Parameters, values: Values | None
    ) -> None:
        self.key, self.states, self.plan, self.parameters, self.values = key, states, plan, parameters, values


_kept: WeakKeyDictionary[nn.Module, tuple[Kept, ...]] = WeakKeyDictionary()
"""The last used first. A module to which one of its own parameters refers is never freed."""
_seen: WeakKeyDictionary[nn.Module, tuple[Key, ...]] = WeakKeyDictionary()
"""Keys that came once: where every call is of another length, no plan is worth keeping."""


_times_forgotten = 0
"""A call in another thread must not bring back what was dropped meanwhile."""


def forget(module: nn.Module) -> None:
    """Drops what is kept of a module's calls."""
    global _times_forgotten
    _times_forgotten += 1
    _kept.pop(module, None)
    _seen.pop(module, None)


def signature(
    module: Any,
    input: Any,
    states: tuple[Any, ...] | None,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    inputs: Sequence[Any] = (),
) -> tuple[Key, tuple[Form | None, ...] | None] | None:
    """Of a call: its key, and the forms of the states before the first step, if any are given.

    None where its plan is not to be kept: where somebody watches what is called, so that not only the results and their
    gradients matter, and of arguments that are no plain tensors.
    """
    if (
        ops.dispatcher_is_watched()  # by a compiler, for one, which looks no further then
        or type(input) not in checks.PLAIN
        or torch.autograd.forward_ad._current_level >= 0
        or not (lengths is None or _is_plain(lengths))
        or not (resets is None or _is_plain(resets))
    ):
        return None
    form, given = _form(input), None
    of_steps = tuple(map(_form, inputs))
    if states is not None:
        if type(states) is not tuple:
            return None
        given = tuple([_form(state) for state in states])
    if form is None or None in of_steps or (given is not None and None in given):
        return None
    backend = requested(module.backend)
    settings: Any
    if input.is_cpu and backend not in GPU_BACKENDS:
        settings = torch.get_num_threads()
    elif input.is_cpu or input.is_cuda:
        settings = tf32.allowed(), torch.backends.cudnn.enabled
    else:
        return None
    autocast = torch._C._is_any_autocast_enabled() and (checks.autocast_dtype(input),)
    differentiable = torch.is_grad_enabled() and _requires_gradients(module, input, states, inputs)
    flags = (lengths is None, resets is None, return_states, differentiable, autocast)
    return (form, flags, of_steps, settings, backend, module._attributes(module)), given


def _form(tensor: Any) -> Form | None:
    """Of a tensor; None of those of which a plan takes nothing for granted."""
    if type(tensor) not in checks.PLAIN or tensor.layout is not torch.strided or tensor.is_neg():
        return None
    return tensor.shape, tensor.dtype, tensor.device, tensor.is_contiguous() or tensor.stride()


def _is_plain(mask: Any) -> bool:
    """Of lengths and resets, which plans check in every call."""
    return not isinstance(mask, Tensor) or (
        type(mask) in checks.PLAIN and mask.layout is torch.strided and not mask.is_neg()
    )


def _requires_gradients(
    module: nn.Module, input: Tensor, states: tuple[Any, ...] | None, inputs: Sequence[Any]
) -> bool:
    if input.requires_grad or any(value.requires_grad for value in inputs):
        return True
    for parameter in module._parameters.values():
        if parameter is not None and parameter.requires_grad:
            return True
    return states is not None and any(state.requires_grad for state in states)


def find(module: nn.Module, key: Key, states: tuple[Form | None, ...] | None) -> Plan | None:
    """The module's plan for that signature, if one is kept and valid still."""
    before, known = _times_forgotten, _kept.get(module, ())
    for one in known:
        if one.key == key and (states is None or states == one.states):
            valid = one.parameters.are_those_of(module) and (one.values is None or one.values.are_unchanged())
            if (not valid or one is not known[0]) and before == _times_forgotten:
                others = [other for other in known if other is not one]
                _kept[module] = (one, *others) if valid else (*others,)
            return one.plan if valid else None
    return None


def _is_differentiable(key: Key) -> bool:
    *_, differentiable, _ = key[1]
    return bool(differentiable)


def keep(
    module: nn.Module,
    key: Key,
    states: tuple[Form | None, ...] | None,
    plan: Plan,
    names: Sequence[str],
    finals: Sequence[Tensor],
) -> None:
    """Keeps the plan of a call that has succeeded: the first with and without gradients, others once they came twice.

    `names` are those of the parameters, `finals` the call's final states, which look as states before the first step
    are to look.
    """
    (_, dtype, device, _), *rest, attributes = key
    usual = tuple([(final.shape, dtype, device, True) for final in finals])
    parameters: list[Any] = [module._parameters.get(name) for name in names]
    if not are_readable(parameters) or (states is not None and states != usual):
        return
    if _is_differentiable(key) and not any(final.requires_grad for final in finals):
        return  # a gradient is asked for that is none of this call's, as of a parameter which a class has added
    # Attributes may be lists, which change.
    key = (key[0], *rest, tuple([list(one) if type(one) is list else one for one in attributes]))
    before, known = _times_forgotten, _kept.get(module, ())
    if any(_is_differentiable(one.key) == _is_differentiable(key) for one in known):
        seen = _seen.get(module, ())
        if key not in seen:
            _seen[module] = (key, *seen[: MOST - 1])
            return
        _seen[module] = tuple([one for one in seen if one != key])
    watched = Parameters(list(zip(names, parameters, strict=True)))
    values = None
    if plan.lays_out_weights and Values.can_be_watched(parameters):
        # Before the weights are read: what changes while they are laid out is a change.
        values = Values(parameters)
        plan.keep_weights()
        laid_out = [one for one in known if one.values is not None]
        known = tuple([one for one in known if one not in laid_out[MOST_PREPACKED - 1 :]])
    if before == _times_forgotten:
        _kept[module] = (Kept(key, usual, plan, watched, values), *known[: MOST - 1])
