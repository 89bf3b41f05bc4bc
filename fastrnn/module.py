"""What fastrnn's layers and cells have and torch.nn's have not; who is told of calls, and where a model holds them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import nn

from fastrnn.binding.plans import Watch
from fastrnn.prepacking import Prepacking

watched: dict[nn.Module, Callable[[], Watch]] = {}
"""The modules that `fastrnn.probe` records, and what tells it of a call. Not kept in the modules, which are copied and
pickled."""


def watch_of(module: nn.Module) -> Watch | None:
    """Who is to be told of a call's layers."""
    return watched[module]() if module in watched else None


def _refuse_to_be_scripted(module: nn.Module) -> NoReturn:
    """torch.jit.script asks each module by this name for what it shall compile in its place."""
    torchs = ", or fastrnn.to_torch(model) for torch.nn's layers, which it can"
    raise NotImplementedError(
        f"torch.jit.script cannot compile fastrnn.{type(module).__name__}: use torch.compile or torch.export"
        + torchs * isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    )


def opacus_objection(module: nn.Module) -> str:
    """Why Opacus cannot hook a layer or a cell, and what to do instead."""
    name = f"fastrnn.{type(module).__name__}"
    if not hasattr(module, "num_layers"):
        return f"{name}: Opacus's hooks do not see a cell's state: use a layer"
    if isinstance(module, nn.RNNBase):
        instead = "import fastrnn.opacus, then opacus.validators.ModuleValidator.fix(model)"
        return f"{name}: Opacus's hooks see neither lengths nor final states: {instead}"
    return f"{name}: Opacus has no layer of other cells: torch.func gives each sample's gradients"


class Module(Prepacking):
    """The base of layers and cells, before torch.nn's."""

    __prepare_scriptable__ = _refuse_to_be_scripted
    backend: str | None = None
    recompute: bool = False

    def register_forward_hook(self, hook: Any, *args: Any, **kwargs: Any) -> Any:
        """torch's, but for Opacus's hooks, which would miss gradients or fail in backward: a TypeError, instead."""
        if type(getattr(hook, "__self__", None)).__module__.partition(".")[0] == "opacus":
            raise TypeError(opacus_objection(self))
        return super().register_forward_hook(hook, *args, **kwargs)

    def extra_repr(self) -> str:
        """torch's, and the options that are not its."""
        own = [f"num_heads={heads}"] if (heads := getattr(self, "num_heads", 1)) != 1 else []
        own += [f"recurrent_dropout={rate}"] if (rate := getattr(self, "recurrent_dropout", 0.0)) else []
        own += [] if self.backend is None else [f"backend={self.backend!r}"]
        own += ["recompute=True"] * self.recompute + [self._prepacked_shown()] * self.prepacked
        return ", ".join([super().extra_repr(), *own])


def recurrent_layers(operator: str, model: Any) -> dict[str, Module]:
    """fastrnn's layers and cells in a model by their names in `named_modules`, the model itself by its class's name.

    Raises:
        TypeError: it is no module.
        ValueError: it holds none of them.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{operator}: module must be a torch.nn.Module, got {type(model).__name__}")
    found = {_title(name, module): module for name, module in model.named_modules() if isinstance(module, Module)}
    if not found:
        others = other_layers(model)
        hint = f"; fastrnn.accelerate makes torch.nn's so: {', '.join(others)}" if others else ""
        raise ValueError(f"{operator}: {type(model).__name__} holds none of fastrnn's recurrent layers{hint}")
    return found


def other_layers(model: nn.Module) -> dict[str, str]:
    """The names of other recurrent layers in a model, such as torch.nn's, and those of their classes."""

    def named(kind: type) -> str:
        return f"torch.nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.") else kind.__name__

    return {
        _title(name, module): named(type(module))
        for name, module in model.named_modules()
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and not isinstance(module, Module)
    }


def _title(name: str, module: nn.Module) -> str:
    return name or type(module).__name__


def eagerly() -> AbstractContextManager[Any]:
    """Compiled functions run as they were written; where no compiler has been loaded, there are none."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
