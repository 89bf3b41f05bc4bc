"""`weight_drop`: numbers of weights that are zero for a call, in training.

It is a parametrization of torch.nn.utils.parametrize, under whose own names `state_dict`s would not load elsewhere: so
two hooks give the weights their plain names there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastrnn.module import Module

Layer = TypeVar("Layer", bound=nn.Module)


def weight_drop(module: Layer, p: float, names: Sequence[str] | None = None) -> Layer:
    """Drops each number of some weights with probability p for a call, in training: DropConnect, as in the AWD-LSTM.

    What is left is scaled by 1/(1 - p), as by `torch.nn.functional.dropout`. In evaluation the weights are as they are.
    A mask is drawn, by torch's generator of the weight's device, whenever the module looks its parameter up: fastrnn's
    layers and cells do so once a call. A cell in a loop has a mask for each step; within
    `torch.nn.utils.parametrize.cached()` it has one, which all calls share until the block ends.

    `state_dict` names the weights as before and loads either way. `torch.func.functional_call` takes the names of
    `named_parameters()`, and what is assigned goes to `module.parametrizations.weight_hh_l0.original`: by its plain
    name a parameter cannot be told from a draw, so that either raises. `parameters()` gives the weights themselves, so
    that optimizers go on, but last: an optimizer's `state_dict` fits models that drop the same weights.
    `torch.nn.utils.parametrize.remove_parametrizations(module, name, leave_parametrized=False)` takes it off again.
    Like every parametrized module, it is not pickled as a whole.

    Args:
        module: one of fastrnn's layers or cells, which is changed in place; other modules that look each parameter up
            once a call, such as `torch.nn.Linear`, will do.
        p: the probability; `module.parametrizations.weight_hh_l0[0].p` may be changed later.
        names: of the parameters; all whose names begin with `weight_hh` if None.

    Returns:
        `module` itself.

    Raises:
        TypeError: `module` is no module, or one of torch's recurrent layers, which `fastrnn.accelerate` makes
            fastrnn's; `names` is no sequence of names.
        ValueError: p is not within [0, 1]; there is no parameter of one of these names, or one is dropped already, or
            none is called `weight_hh`. Nothing has changed then.

    Source: Wan et al., "Regularization of neural networks using DropConnect" (2013); Merity et al., "Regularizing and
    optimizing LSTM language models" (2018).

    Example::

        >>> import torch, fastrnn
        >>> lstm = fastrnn.weight_drop(fastrnn.LSTM(10, 20), 0.5)
        >>> output, (hn, cn) = lstm(torch.randn(5, 3, 10))
        >>> sorted(lstm.state_dict())
        ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"weight_drop: module must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, nn.RNNBase) and not isinstance(module, Module):
        hint = "fastrnn.accelerate(module) makes it fastrnn's"
        raise TypeError(f"weight_drop: {type(module).__name__} looks its parameters up more than once a call: {hint}")
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ValueError(f"weight_drop: p has to be between 0 and 1, but got {p}")
    if isinstance(names, str) or not isinstance(names, (Sequence, type(None))):
        raise TypeError(f"weight_drop: names must be a sequence of parameters' names, got {type(names).__name__}")
    found = _own(module)
    chosen = [name for name in found if name.startswith("weight_hh")] if names is None else list(dict.fromkeys(names))
    missing = [name for name in chosen if name not in found]
    if missing or not chosen:
        wanted = repr(missing[0]) if missing else "weight_hh"
        raise ValueError(f"weight_drop: {type(module).__name__} has no parameter {wanted}")
    again = [name for name in chosen if name in _dropped(module)]
    if again:
        raise ValueError(f"weight_drop: {again[0]} is dropped already: change module.parametrizations.{again[0]}[0].p")
    for name in chosen:
        # Safe, and not tried out: that would draw.
        parametrize.register_parametrization(module, name, WeightDrop(p), unsafe=True)
    if _with_plain_names not in module._state_dict_hooks.values():
        module.register_state_dict_post_hook(_with_plain_names)  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(_from_plain_names)  # type: ignore[no-untyped-call]
    return module


class WeightDrop(nn.Module):
    """What `weight_drop` registers: a weight of any shape -> what is left of it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, weight: Tensor) -> Tensor:
        """Itself in evaluation."""
        return F.dropout(weight, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def raw(module: nn.Module, name: str) -> Tensor:
    """A parameter of a module, whatever `weight_drop` leaves of it for a call."""
    if name in _dropped(module):
        steps: Any = module.parametrizations
        if hasattr(steps[name], "original"):  # else something below makes it of several tensors
            return steps[name].original  # type: ignore[no-any-return]
    return getattr(module, name)  # type: ignore[no-any-return]


def _own(module: nn.Module) -> list[str]:
    """The names of a module's parameters, parametrized or not, in the order in which they came."""
    parametrized: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
    return [*module._parameters, *parametrized]


def _dropped(module: nn.Module) -> list[str]:
    """The names of parameters that `weight_drop` was given."""
    if not parametrize.is_parametrized(module):
        return []
    lists: Any = module.parametrizations
    return [name for name, steps in lists.items() if any(isinstance(step, WeightDrop) for step in steps)]


def _with_plain_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    _renamed(state_dict, {old: new for new, old in _names(module, prefix)})


def _from_plain_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    _renamed(state_dict, dict(_names(module, prefix)))


def _names(module: nn.Module, prefix: str) -> list[tuple[str, str]]:
    """Of each dropped parameter the plain name, and torch's where nothing else makes several tensors of it."""
    return [(prefix + name, f"{prefix}parametrizations.{name}.original") for name in _dropped(module)]


def _renamed(state_dict: dict[str, Any], names: dict[str, str]) -> None:
    for old, new in names.items():
        if old in state_dict:
            state_dict[new] = state_dict.pop(old)
