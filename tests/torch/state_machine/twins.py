"""A module of fastrnn's and torch.nn's namesake with equal parameters, and the numbers that both are given."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn

POOL = torch.randn(1 << 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
"""Random numbers, of which `Values` gives parts: drawing them costs more than a call."""


@dataclass(frozen=True)
class Kind:
    """What both modules are made with."""

    name: str = "GRU"
    inputs: int = 2
    hidden: int = 3
    double: bool = True
    bias: bool = True
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    projected: bool = False
    dropout: bool = False
    relu: bool = False
    backend: str | None = None

    @property
    def cell(self) -> bool:
        """Whether it is a cell."""
        return self.name.endswith("Cell")

    def options(self) -> dict[str, Any]:
        """Keyword arguments of torch.nn's constructor."""
        options: dict[str, Any] = {"bias": self.bias, "dtype": torch.float64 if self.double else torch.float32}
        if self.name.startswith("RNN"):
            options["nonlinearity"] = "relu" if self.relu else "tanh"
        if not self.cell:
            options |= {"num_layers": self.layers, "bidirectional": self.bidirectional}
            options |= {"batch_first": self.batch_first, "dropout": 0.5 * (self.dropout and self.layers > 1)}
        if self.name == "LSTM" and self.projected and self.hidden > 2:
            options["proj_size"] = self.hidden - 2
        return options


class Values:
    """Random numbers; one with the same seed gives the same again."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """Of its own memory."""
        count = 1
        for size in shape:
            count *= size
        first = self.random.randrange(len(POOL) - count)
        return POOL[first : first + count].view(tuple(shape)).to(dtype, copy=True)

    def like(self, tensor: Tensor) -> Tensor:
        """What may take a parameter's place: about as large as trained ones are."""
        return self.tensor(tensor.shape, tensor.dtype).mul_(0.4)

    def one_of(self, things: Sequence[Any]) -> Any:
        """Any of them."""
        return things[self.random.randrange(len(things))]


class Twins:
    """Both modules, and what the machine knows about them."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.kind = kind
        self.modules: list[nn.Module] = [
            getattr(fastrnn, kind.name)(kind.inputs, kind.hidden, backend=kind.backend, **kind.options()),
            getattr(nn, kind.name)(kind.inputs, kind.hidden, **kind.options()),
        ]
        for module in self.modules:
            values = Values(seed)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.copy_(values.like(parameter))
        self.forms: list[Any] = []
        """kinds of calls that were made, the last one first"""
        self.states: list[Tensor] = []
        """that fastrnn's module returned last"""
        self.held: Any = None
        """a call whose gradients have not been asked for yet"""
        self.wrapped: str | None = None
        """the parameter that is computed from others"""
        self.tied = False
        """whether it has parameters of other twins"""

    @property
    def ours(self) -> Any:
        """fastrnn's."""
        return self.modules[0]

    @property
    def theirs(self) -> Any:
        """torch.nn's."""
        return self.modules[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.theirs.parameters()).dtype

    @property
    def directions(self) -> int:
        """One or two."""
        return 2 if getattr(self.theirs, "bidirectional", False) else 1

    @property
    def widths(self) -> tuple[int, ...]:
        """How many numbers each state has."""
        hidden = self.theirs.hidden_size
        return (getattr(self.theirs, "proj_size", 0) or hidden, hidden) if self.kind.name[0] == "L" else (hidden,)

    def state_shape(self, batch: int | None, width: int) -> tuple[int, ...]:
        """Of a state."""
        rows = () if batch is None else (batch,)
        return (*rows, width) if self.kind.cell else (self.theirs.num_layers * self.directions, *rows, width)

    def weights(self) -> list[list[Tensor]]:
        """Those of torch.nn's module, as `fastrnn.functional` takes them."""
        if not self.kind.cell:
            return [[getattr(self.theirs, name) for name in names] for names in self.theirs._all_weights]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [[weight for weight in (getattr(self.theirs, name) for name in names) if weight is not None]]
