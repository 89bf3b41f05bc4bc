"""What fastrnn's layers and cells have and torch.nn's have not: options, and who is told of their calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn

from fastrnn.prepacking import Prepacking
from fastrnn.stack import Watch

watched: dict[nn.Module, Callable[[], Watch]] = {}
"""The modules that `fastrnn.probe` records, and what tells it of a call. Not kept in the modules, which are copied and
pickled."""


def watch_of(module: nn.Module) -> Watch | None:
    """Who is to be told of a call's layers."""
    return watched[module]() if module in watched else None


def _refuse_to_be_scripted(module: nn.Module) -> NoReturn:
    """torch.jit.script asks each module by this name for what it shall compile in its place."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile fastrnn.{type(module).__name__}: use torch.compile or torch.export, or "
        "fastrnn.to_torch(model) for torch.nn's layers, which it can"
    )


def opacus_objection(module: nn.Module) -> str:
    """Why Opacus cannot hook a layer or a cell, and what to do instead."""
    name = f"fastrnn.{type(module).__name__}"
    if isinstance(module, nn.RNNBase):
        instead = "import fastrnn.opacus, then opacus.validators.ModuleValidator.fix(model)"
        return f"{name}: Opacus's hooks see neither lengths nor final states: {instead}"
    return f"{name}: Opacus's hooks do not see a cell's state: use a layer"


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
        own = [] if self.backend is None else [f"backend={self.backend!r}"]
        own += ["recompute=True"] * self.recompute + ["prepacked"] * self.prepacked
        return ", ".join([super().extra_repr(), *own])
