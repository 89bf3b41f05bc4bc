"""What happens to parameters between calls, to fastrnn's and torch.nn's alike; it stays until something else happens.

`module_changes` has what happens to modules as a whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.torch.state_machine.twins import Twins, Values

Change = Callable[[Twins, Any, Values], None]
"""Of one of the twins; with the same values for both."""

CHANGES: dict[str, Change] = {}
APPLIES: dict[str, Callable[[Twins], bool]] = {}
COUNTED: set[str] = set()
"""After which backward of an earlier call is right, or raises: other changes are nobody's business but the writer's."""


def change(
    *, applies: Callable[[Twins], bool] = lambda twins: True, counted: bool = False
) -> Callable[[Change], Change]:
    """Enters a change in the table, by the function's name."""

    def entered(function: Change) -> Change:
        name = function.__name__.strip("_").replace("_", " ")
        CHANGES[name], APPLIES[name] = function, applies
        if counted:
            COUNTED.add(name)
        return function

    return entered


def plain(twins: Twins) -> bool:
    """Whether all that the modules compute from are parameters."""
    return twins.wrapped is None


def own(twins: Twins) -> bool:
    """Whether nobody else has these parameters, and they are parameters."""
    return plain(twins) and not twins.tied


def layers(twins: Twins) -> bool:
    """Whether they are no cells."""
    return not twins.kind.cell


def apply(twins: Twins, name: str, seed: int) -> None:
    """Changes both."""
    if name not in COUNTED:
        twins.held = None
    for index in range(2):
        CHANGES[name](twins, twins.modules[index], Values(seed))


def names(module: Any) -> list[str]:
    """Of the module's own parameters."""
    return [name for name, _ in module.named_parameters(recurse=False)]


def any_parameter(module: Any, values: Values) -> Any:
    """One of them."""
    return getattr(module, values.one_of(names(module)))


def weight_hh(twins: Twins) -> str:
    """The name of a recurrent weight."""
    return "weight_hh" if twins.kind.cell else "weight_hh_l0"


def _step(module: Any, values: Values, optimizer: Any) -> None:
    if any(parameter.is_neg() for parameter in module.parameters()):
        return  # which torch's optimizers do not take
    for parameter in module.parameters():
        parameter.grad = values.like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()


@change(counted=True)
def _sgd(twins: Twins, module: Any, values: Values) -> None:
    _step(module, values, torch.optim.SGD(module.parameters(), lr=0.5))


@change(counted=True)
def _adam(twins: Twins, module: Any, values: Values) -> None:
    _step(module, values, torch.optim.Adam(module.parameters(), lr=0.3))


@change()
def _fused_adam(twins: Twins, module: Any, values: Values) -> None:
    _step(module, values, torch.optim.Adam(module.parameters(), lr=0.3, fused=True))


@change(applies=plain)
def _load_state_dict(twins: Twins, module: Any, values: Values) -> None:
    module.load_state_dict({name: values.like(value) for name, value in module.state_dict().items()})


@change(applies=own)
def _assign_state_dict(twins: Twins, module: Any, values: Values) -> None:
    module.load_state_dict({name: values.like(value) for name, value in module.state_dict().items()}, assign=True)


@change(counted=True)
def copy_in_place(twins: Twins, module: Any, values: Values) -> None:
    with torch.no_grad():
        parameter = any_parameter(module, values)
        parameter.copy_(values.like(parameter))


@change(counted=True)
def _write_one_number(twins: Twins, module: Any, values: Values) -> None:
    with torch.no_grad():
        any_parameter(module, values)[-1].fill_(0.7)


@change(counted=True)
def _write_in_inference_mode(twins: Twins, module: Any, values: Values) -> None:
    with torch.inference_mode():
        any_parameter(module, values).mul_(-1)


@change()
def _write_data(twins: Twins, module: Any, values: Values) -> None:
    parameter = any_parameter(module, values)
    parameter.data.copy_(values.like(parameter))


@change(applies=lambda twins: not twins.ours.prepacked)
def _write_one_number_of_data(twins: Twins, module: Any, values: Values) -> None:
    """Which prepacked weights need not notice."""
    parameter = any_parameter(module, values)
    parameter.data[(values.random.randrange(len(parameter)), *[-1] * (parameter.dim() - 1))] = 0.9


@change()
def _write_memory(twins: Twins, module: Any, values: Values) -> None:
    parameter = any_parameter(module, values)
    if not parameter.is_neg():
        parameter.detach().numpy()[...] = values.like(parameter).numpy()


@change()
def _set_data(twins: Twins, module: Any, values: Values) -> None:
    parameter = any_parameter(module, values)
    parameter.data = values.like(parameter)


@change()
def _set_transposed_data(twins: Twins, module: Any, values: Values) -> None:
    parameter = any_parameter(module, values)
    parameter.data = values.like(parameter.t()).t()


@change()
def _read_data_transposed(twins: Twins, module: Any, values: Values) -> None:
    """The same memory and shape, in another order."""
    parameter = any_parameter(module, values)
    if parameter.dim() == 2 and parameter.is_contiguous():
        parameter.data = parameter.data.view(*reversed(parameter.shape)).t()


@change()
def _read_data_negated(twins: Twins, module: Any, values: Values) -> None:
    """The same memory with another sign."""
    parameter = any_parameter(module, values)
    parameter.data = torch._neg_view(parameter.data)


@change()
def _set_data_of_a_larger_memory(twins: Twins, module: Any, values: Values) -> None:
    parameter = any_parameter(module, values)
    parameter.data = values.tensor((2, *parameter.shape), parameter.dtype)[1]


@change()
def _set_memory(twins: Twins, module: Any, values: Values) -> None:
    parameter = any_parameter(module, values)
    if not parameter.is_neg():
        with torch.no_grad():
            parameter.set_(values.like(parameter))


@change()
def _set_memory_of_data(twins: Twins, module: Any, values: Values) -> None:
    """Which changes nothing: it is another tensor's."""
    parameter = any_parameter(module, values)
    parameter.data.set_(values.like(parameter))


@change()
def _free_memory_and_take_it_back(twins: Twins, module: Any, values: Values) -> None:
    parameter = any_parameter(module, values)
    storage, before = parameter.untyped_storage(), parameter.detach().clone()
    if not storage.resizable():
        return
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    parameter.data.copy_(before)


@change(applies=own)
def _replace(twins: Twins, module: Any, values: Values) -> None:
    name = values.one_of(names(module))
    setattr(module, name, nn.Parameter(values.like(getattr(module, name))))


@change(applies=own)
def _replace_by_a_negative_view(twins: Twins, module: Any, values: Values) -> None:
    name = values.one_of(names(module))
    setattr(module, name, nn.Parameter(torch._neg_view(values.like(getattr(module, name)))))


@change(applies=own)
def _exchange_within(twins: Twins, module: Any, values: Values) -> None:
    """Two parameters of one shape, biases say."""
    shapes: dict[Any, list[str]] = {}
    for name in names(module):
        shapes.setdefault(getattr(module, name).shape, []).append(name)
    groups = [group for group in shapes.values() if len(group) > 1]
    if groups:
        one, *_, other = values.one_of(groups)
        first, second = getattr(module, one), getattr(module, other)
        setattr(module, one, second)
        setattr(module, other, first)


@change(applies=lambda twins: own(twins) and layers(twins))
def _exchange_names(twins: Twins, module: Any, values: Values) -> None:
    """By which both take their parameters: two of one shape."""
    if twins.kind.bias:
        _, _, one, other = module._flat_weights_names[:4]
        module._flat_weights_names[2:4] = other, one
        module._all_weights[0][2:4] = other, one


@change(applies=own)
def _swap_tensors(twins: Twins, module: Any, values: Values) -> None:
    name = values.one_of(names(module))
    if not weakref.getweakrefs(getattr(twins.theirs, name)):  # of which torch's optimizers leave some
        torch.utils.swap_tensors(getattr(module, name), nn.Parameter(values.like(getattr(module, name))))
