"""What fastrnn's layers and cells have and torch.nn's have not: options, and who is told of their calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

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


class Module(Prepacking):
    """The base of layers and cells, before torch.nn's."""

    __prepare_scriptable__ = _refuse_to_be_scripted
    backend: str | None = None
    recompute: bool = False

    def extra_repr(self) -> str:
        """torch's, and the options that are not its."""
        own = [] if self.backend is None else [f"backend={self.backend!r}"]
        own += ["recompute=True"] * self.recompute + ["prepacked"] * self.prepacked
        return ", ".join([super().extra_repr(), *own])
