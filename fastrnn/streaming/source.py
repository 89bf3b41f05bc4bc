"""What a stream takes from a module: its cell, weights, layout and states' form."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrnn.cell_parameters import CellParameters
from fastrnn.cells import Cell
from fastrnn.cells.weights import Parted, parted
from fastrnn.convert import Change, accelerate
from fastrnn.module import Module, other_layers
from fastrnn.zoneout import rates_of


class Source(NamedTuple):
    """A module as a stream sees it."""

    module: Any
    """one of fastrnn's, which shares the parameters of the one that was given"""
    cell: Cell
    batch_first: bool
    is_cell: bool
    """whether states have no dimension of layers"""

    def layers(self) -> list[Parted]:
        """Each layer's weights as they are now, contiguous, without gradients.

        Raises:
            ValueError: they are not float32 on the CPU.
        """
        module = self.module
        if hasattr(module, "_weights"):
            groups = module._weights()
        else:
            groups = [[getattr(module, name) for name in names] for names in module._names()]
        for tensor in groups[0]:
            if tensor.dtype != torch.float32 or not tensor.is_cpu:
                kind = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
                raise ValueError(f"stream: parameters must be float32 on the CPU, got {kind}: module.float().cpu()")
        return [parted(self.cell, [w.detach().contiguous() for w in group]) for group in groups]

    def step_inputs(self) -> list[Tensor | None]:
        """Of each layer what the cell takes in every step, (N, H): the rates of zoneout.

        Raises:
            ValueError: it takes something else.
        """
        if not self.cell.inputs:
            return [None] * len(self.layers())
        module: CellParameters = self.module
        rates = rates_of("stream", self.cell, module.zoneout)
        missing = [name for name in self.cell.inputs if name not in rates]
        if missing:
            raise ValueError(f"stream: the cell {self.cell.name} takes {', '.join(missing)} in every step")
        row = [torch.full((module.hidden_size,), rates[name]) for name in self.cell.inputs]
        return [torch.stack(row) for _ in self.layers()]


def source_of(module: Any) -> Source:
    """What a stream takes from a module.

    Raises:
        TypeError: it is no recurrent layer or cell, of fastrnn or of torch.nn.
        ValueError: it goes over the sequence in both directions.
    """
    ours = module
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and not isinstance(module, Module):
        notes: list[Change] = []
        ours = accelerate(copy(module), report=notes.append)
        if not isinstance(ours, Module):
            raise TypeError(f"stream: {'; '.join(change.note for change in notes)}")
    if not isinstance(ours, Module):
        raise TypeError(f"stream: module must be a recurrent layer or cell, got {_and_what_it_holds(module)}")
    configuration = ours._configuration()  # type: ignore[operator]
    if configuration.bidirectional:
        raise ValueError("stream: module must be unidirectional: the other direction begins at the sequence's end")
    return Source(ours, configuration.cell, configuration.batch_first, configuration.is_cell)


def _and_what_it_holds(module: Any) -> str:
    """What was given in a module's place, and what may be streamed of it."""
    got = type(module).__name__
    if not isinstance(module, nn.Module):
        return got
    found: Sequence[str] = [
        *(name for name, inner in module.named_modules() if isinstance(inner, Module)),
        *other_layers(module),
    ]
    return f"{got}; it holds {', '.join(found)}: make a stream of each" if found else got
