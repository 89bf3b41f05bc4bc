"""What happens to modules between calls: parametrizations, dtypes, copies, conversions, attributes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn
from tests.torch.state_machine.changes import any_parameter, change, copy_in_place, layers, own, plain, weight_hh
from tests.torch.state_machine.twins import Twins, Values


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
    copy_in_place(twins, module, values)
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
        module.backend = values.one_of((None, "auto", "numba", "reference", *["aten"] * (not module.recompute)))


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


@change(counted=True, applies=lambda twins: layers(twins) and twins.ours.backend != "aten")
def _recompute(twins: Twins, module: Any, values: Values) -> None:
    if module is twins.ours:
        module.recompute = not module.recompute
