"""What happens to modules between calls, to fastrnn's and torch.nn's alike; it stays until something else happens."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn
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
def _copy_in_place(twins: Twins, module: Any, values: Values) -> None:
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


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """Twice the weight."""
        return 2 * weight


@change(applies=own)
def _parametrize(twins: Twins, module: Any, values: Values) -> None:
    parametrize.register_parametrization(module, weight_hh(twins), Doubled())
    twins.wrapped = "parametrized" if module is twins.theirs else None


@change(applies=own)
def _weight_norm(twins: Twins, module: Any, values: Values) -> None:
    parametrizations.weight_norm(module, weight_hh(twins))
    twins.wrapped = "parametrized" if module is twins.theirs else None


@change(applies=own)
def _prune(twins: Twins, module: Any, values: Values) -> None:
    name = weight_hh(twins)
    mask = values.tensor(getattr(module, name).shape) > 0
    prune.custom_from_mask(module, name, mask.to(getattr(module, name).dtype))
    twins.wrapped = "pruned" if module is twins.theirs else None


@change(applies=lambda twins: not plain(twins))
def _unwrap(twins: Twins, module: Any, values: Values) -> None:
    if twins.wrapped == "pruned":
        prune.remove(module, weight_hh(twins))
    else:
        parametrize.remove_parametrizations(module, weight_hh(twins))
    if module is twins.theirs:
        twins.wrapped = None


@change()
def _freeze_one(twins: Twins, module: Any, values: Values) -> None:
    any_parameter(module, values).requires_grad_(False)


@change()
def _freeze(twins: Twins, module: Any, values: Values) -> None:
    module.requires_grad_(False)


@change(counted=True)
def _thaw(twins: Twins, module: Any, values: Values) -> None:
    module.requires_grad_(True)


@change(applies=own)
def _double(twins: Twins, module: Any, values: Values) -> None:
    module.double()


@change(applies=own)
def _float(twins: Twins, module: Any, values: Values) -> None:
    module.to(torch.float32)


@change(applies=own)
def _float_and_back(twins: Twins, module: Any, values: Values) -> None:
    dtype = twins.dtype
    module.float().to(dtype)


@change(applies=own)
def _deepcopy(twins: Twins, module: Any, values: Values) -> None:
    twins.modules[twins.modules.index(module)] = copy.deepcopy(module)


@change(applies=own)
def _pickle(twins: Twins, module: Any, values: Values) -> None:
    twins.modules[twins.modules.index(module)] = pickle.loads(pickle.dumps(module))


@change(applies=plain)
def _convert(twins: Twins, module: Any, values: Values) -> None:
    """There and back, or, of torch.nn's, not at all."""
    if module is twins.ours:
        backend = module.backend
        fastrnn.to_torch(module, report=lambda change: None)
        fastrnn.accelerate(module).backend = backend


@change(applies=plain)
def _change_what_is_torchs(twins: Twins, module: Any, values: Values) -> None:
    """fastrnn's while it is torch.nn's."""
    mine = module is twins.ours
    if mine:
        backend = module.backend
        fastrnn.to_torch(module, report=lambda change: None)
        with torch.no_grad():
            module(torch.zeros(2, module.input_size, dtype=twins.dtype))
    _copy_in_place(twins, module, values)
    if mine:
        fastrnn.accelerate(module).backend = backend


@change(counted=True)
def _prepack(twins: Twins, module: Any, values: Values) -> None:
    if module is twins.ours:
        module.prepack()


@change(counted=True)
def _unpack(twins: Twins, module: Any, values: Values) -> None:
    if module is twins.ours:
        module.prepack(False)


@change(counted=True)
def _train(twins: Twins, module: Any, values: Values) -> None:
    module.train()


@change(counted=True)
def _eval(twins: Twins, module: Any, values: Values) -> None:
    module.eval()


@change(counted=True, applies=layers)
def _flatten_parameters(twins: Twins, module: Any, values: Values) -> None:
    module.flatten_parameters()


@change(counted=True)
def _other_backend(twins: Twins, module: Any, values: Values) -> None:
    if module is twins.ours:
        module.backend = values.one_of((None, "auto", "numba", "aten", "reference"))


@change(counted=True, applies=layers)
def _batch_first(twins: Twins, module: Any, values: Values) -> None:
    module.batch_first = not module.batch_first


@change(counted=True, applies=lambda twins: layers(twins) and twins.kind.layers > 1 and twins.kind.dropout)
def _dropout(twins: Twins, module: Any, values: Values) -> None:
    module.dropout = 0.25 - module.dropout / 2


@change(counted=True, applies=lambda twins: twins.kind.name in ("RNN", "RNNCell"))
def _other_activation(twins: Twins, module: Any, values: Values) -> None:
    if twins.kind.cell:
        module.nonlinearity = "tanh" if module.nonlinearity == "relu" else "relu"
    else:
        module.mode = "RNN_TANH" if module.mode == "RNN_RELU" else "RNN_RELU"


@change(counted=True)
def _recompute(twins: Twins, module: Any, values: Values) -> None:
    if module is twins.ours and layers(twins):
        module.recompute = not module.recompute
