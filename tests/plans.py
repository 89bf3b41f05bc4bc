"""The plans that are kept of a module's calls, for tests that mean a certain kind of them."""

from __future__ import annotations

from torch import nn

from fastrnn.binding import memory
from fastrnn.binding.plans import Plan


def plans_of(module: nn.Module) -> list[Plan]:
    """The last used first."""
    return [one.plan for one in memory._kept.get(module, ())]


def prepacked_plans_of(module: nn.Module) -> list[Plan]:
    """Those whose weights are laid out."""
    return [one.plan for one in memory._kept.get(module, ()) if one.values is not None]
