"""What a stream takes from a module: its cell, weights, layout and states' form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrnn import checks
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
        """Each layer's weights as they are now in evaluation, contiguous, without gradients.

        Raises:
            ValueError: they are not float32 on the CPU.
            RuntimeError: they are of no layer's shapes, or have no memory.
        """
        module = self.module
        with torch.no_grad(), _in_evaluation(module):
            if hasattr(module, "_weights"):
                groups = module._weights()
            else:
                groups = [[getattr(module, name) for name in names] for names in module._names()]
        tensors = [tensor for group in groups for tensor in group]
        for tensor in tensors:
            if tensor.dtype != torch.float32 or not tensor.is_cpu:
                kind = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
                raise ValueError(f"stream: parameters must be float32 on the CPU, got {kind}: module.float().cpu()")
        if any(type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ for tensor in tensors):
            raise RuntimeError("stream: parameters must be tensors in memory, got those of a tracer or mode")
        checks.memory("stream", tensors, lambda: {"a parameter": tensors})
        checks.weight_shapes("stream", self.cell, 1, groups[0][0].shape[-1], groups)
        return [parted(self.cell, [w.detach().resolve_neg().contiguous() for w in group]) for group in groups]

    def step_inputs(self) -> list[Tensor | None]:
        """Of each layer what the cell takes in every step, (N, H): the rates of zoneout.

        Raises:
            ValueError: it takes something else.
        """
        module: CellParameters = self.module
        count = len(module._names())
        if not self.cell.inputs:
            return [None] * count
        rates = rates_of("stream", self.cell, module.zoneout)
        missing = [name for name in self.cell.inputs if name not in rates]
        if missing:
            raise ValueError(f"stream: the cell {self.cell.name} takes {', '.join(missing)} in every step")
        row = [torch.full((module.hidden_size,), rates[name]) for name in self.cell.inputs]
        return [torch.stack(row)] * count


def source_of(module: Any) -> Source:
    """What a stream takes from a module.

    Raises:
        TypeError: it is no recurrent layer or cell, of fastrnn or of torch.nn.
        ValueError: it goes over the sequence in both directions.
    """
    ours = module
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and not isinstance(module, Module):
        notes: list[Change] = []
        ours = accelerate(_sharing(module), report=notes.append)
        if not isinstance(ours, Module):
            raise TypeError(f"stream: {'; '.join(change.note for change in notes)}")
    if not isinstance(ours, Module):
        raise TypeError(f"stream: module must be a recurrent layer or cell, got {_and_what_it_holds(module)}")
    configuration = ours._configuration()  # type: ignore[operator]
    if configuration.bidirectional:
        raise ValueError("stream: module must be unidirectional: the other direction begins at the sequence's end")
    return Source(ours, configuration.cell, configuration.batch_first, configuration.is_cell)


@contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    """What makes parameters of others, as weight dropout does, computes as in evaluation."""
    training = [inner for inner in module.modules() if inner is not module and inner.training]
    for inner in training:
        inner.training = False
    try:
        yield
    finally:
        for inner in training:
            inner.training = True


def _sharing(module: nn.Module) -> nn.Module:
    """Another object of the same class, with the same parameters; `copy` refuses parametrized ones."""
    other: nn.Module = object.__new__(type(module))
    other.__dict__.update(module.__dict__)
    return other


def _and_what_it_holds(module: Any) -> str:
    """What was given in a module's place, and what may be streamed of it."""
    got = type(module).__name__
    if not isinstance(module, nn.Module):
        return got
    found: Sequence[str] = [
        *(name for name, inner in module.named_modules() if isinstance(inner, Module)),
        *other_layers(module),
    ]
    return f"{got}; it holds {', '.join(map(repr, found))}: make a stream of each" if found else got
