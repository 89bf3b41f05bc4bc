"""What comes before and after the layers: checks, packing, batch_first, unbatched input, autocast, states.

`prepare` brings a caller's arguments into the layout of `Call`, and says how results go back into the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks, packing
from fastrnn.backends import check_name, requested
from fastrnn.backends.call import Call
from fastrnn.cells import CELLS
from fastrnn.lengths import Lengths, on_device

Weights = Sequence[Sequence[Tensor]]
States = tuple[Tensor, ...]


@dataclass(frozen=True)
class Options:
    """What a module is configured with, beside its parameters."""

    label: str
    """the class's name, for messages"""
    cell_name: str
    bidirectional: bool = False
    batch_first: bool = False
    dropout: float = 0.0
    training: bool = False
    recompute: bool = False
    backend: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A checked call, and what turns its time-first, batched output into the caller's layout."""

    call: Call
    backend: str
    finish: Callable[[Tensor, States], tuple[Any, States]]
    lay_out: Callable[[Tensor], Tensor]
    """what does the same for every step of a state, (layers·directions, T, B, F)"""
    dropout: Callable[[Tensor], Tensor]


def prepare(
    options: Options,
    weights: Weights,
    input: Tensor | PackedSequence,
    hx: Tensor | Sequence[Tensor] | None,
    lengths: Lengths | None,
    resets: Tensor | None,
) -> Prepared:
    """Checks everything and brings it into the layout of `Call`; computes nothing yet."""
    states = _as_states(options, hx)
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError(f"{options.label.lower()}: a PackedSequence has its own lengths, lengths must be None")
        _check_memory(options, weights, input, states, resets=resets)
        return _prepare_packed(options, weights, input, states, resets)
    if not isinstance(input, Tensor):
        raise TypeError(
            f"{options.label.lower()}: input must be a tensor or a PackedSequence, got {type(input).__name__}"
        )
    _check_memory(options, weights, (input,), states, lengths, resets)
    return _prepare_padded(options, weights, input, states, lengths, resets)


def prepare_step(options: Options, weights: Sequence[Tensor], input: Tensor, states: States | None) -> Prepared:
    """One step of a cell, input (B, I) and states (B, H), as the call of a layer of one step."""
    _check_memory(options, [weights], (input,), states)
    hx = states and tuple(state.unsqueeze(0) for state in states)
    return _prepared(options, [weights], input.unsqueeze(0), hx, None, None, _as_they_are, lambda state: state, True)


def _check_memory(
    options: Options,
    weights: Weights,
    input: Sequence[Any],
    states: States | None,
    lengths: Any = None,
    resets: Any = None,
) -> None:
    """That there is memory behind everything, before anything reads it. `input` are the fields of a PackedSequence, or
    the input alone; what is no tensor is found elsewhere."""

    def named() -> dict[str, Any]:
        fields = PackedSequence._fields if len(input) > 1 else ("the input",)
        return {
            **{field: (value,) for field, value in zip(fields, input, strict=True)},
            "hx": states or (),
            "lengths": (lengths,),
            "resets": (resets,),
            "a parameter": [tensor for group in weights for tensor in group],
        }

    tensors = (*input, *(states or ()), lengths, resets, *[tensor for group in weights for tensor in group])
    checks.memory(options.label.lower(), tensors, named)


def _as_they_are(output: Tensor, finals: States) -> tuple[Tensor, States]:
    return output, finals


def _as_states(options: Options, hx: Tensor | Sequence[Tensor] | None) -> States | None:
    if hx is None:
        return None
    checks.count_of_states(options.label, hx, CELLS[options.cell_name].states)
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _prepare_padded(
    options: Options,
    weights: Weights,
    input: Tensor,
    states: States | None,
    lengths: Lengths | None,
    resets: Tensor | None,
) -> Prepared:
    checks.layer_input(options.label, input)
    if states is not None:
        checks.state_dims(input, states)
    checks.dtype_and_size(input, weights[0][0])
    batched, batch_first = input.dim() == 3, options.batch_first
    operator = options.label.lower()
    if resets is not None:
        names = ("BT" if batch_first else "TB") if batched else "T"
        checks.resets(operator, resets, tuple(input.shape[:-1]), names, input.device)
        resets = (resets.t() if batch_first else resets) if batched else resets.unsqueeze(1)
    if not batched:
        input, states = input.unsqueeze(1), states and tuple(state.unsqueeze(1) for state in states)
    elif batch_first:
        input = input.transpose(0, 1)
    if lengths is not None:
        steps, batch = input.shape[:2]
        lengths = on_device(operator, lengths, batch if batched else None, steps, input.device)

    def finish(output: Tensor, finals: States) -> tuple[Tensor, States]:
        if not batched:
            return output.squeeze(1), tuple(final.squeeze(1) for final in finals)
        return output.transpose(0, 1) if batch_first else output, finals

    def lay_out(state: Tensor) -> Tensor:
        if not batched:
            return state.squeeze(2)
        return state.transpose(1, 2) if batch_first else state

    return _prepared(options, weights, input, states, lengths, resets, finish, lay_out)


def _prepare_packed(
    options: Options, weights: Weights, packed: PackedSequence, states: States | None, resets: Tensor | None
) -> Prepared:
    """A packed batch runs padded with lengths, its sequences in their sorted order."""
    checks.packed(options.label.lower(), packed)
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    checks.dtype_and_size(data, weights[0][0])
    # A size, where there is one, rather than data: one graph then serves every batch.
    batch = int(batch_sizes[0]) if sorted_indices is None else sorted_indices.shape[0]
    steps, compiled = batch_sizes.shape[0], torch.compiler.is_compiling()
    if not compiled:
        batch_sizes = batch_sizes.resolve_neg().contiguous()  # torch's functions read its memory as it lies there
    packed_lengths = (torch.arange(batch, device=batch_sizes.device)[:, None] < batch_sizes).sum(1)

    def pad(rows: Tensor) -> Tensor:
        if compiled:
            return packing.pad(rows, batch_sizes, batch)
        return torch._VF._pad_packed_sequence(rows, batch_sizes, False, 0.0, steps)[0]

    def pack(output: Tensor) -> Tensor:
        if compiled or batch == 0:  # which torch's function refuses, though its layers take it
            return packing.pack(output, batch_sizes, data.shape[0])
        return torch._VF._pack_padded_sequence(output, packed_lengths, False)[0]

    def finish(output: Tensor, finals: States) -> tuple[PackedSequence, States]:
        if unsorted_indices is not None:
            finals = tuple(final.index_select(1, unsorted_indices) for final in finals)
        rows = output if output.dim() == data.dim() else pack(output)
        return PackedSequence(rows, batch_sizes, sorted_indices, unsorted_indices), finals

    def lay_out(state: Tensor) -> Tensor:
        state = state if unsorted_indices is None else state.index_select(2, unsorted_indices)
        return state.transpose(1, 2) if options.batch_first else state

    if resets is not None:
        names = "BT" if options.batch_first else "TB"
        shape = (batch, steps) if options.batch_first else (steps, batch)
        checks.resets(options.label.lower(), resets, shape, names, data.device)
        resets = resets.t() if options.batch_first else resets
        resets = resets if sorted_indices is None else resets.index_select(1, sorted_indices)
    expected = checks.state_shapes(CELLS[options.cell_name], weights, batch)
    if states is not None:
        checks.state_sizes(states, expected)
        if sorted_indices is not None:
            states = tuple(state.index_select(1, sorted_indices) for state in states)
    prepared = _prepared(options, weights, pad(data), states, packed_lengths.to(data.device), resets, finish, lay_out)
    call = replace(prepared.call, packed=(data.to(prepared.call.x.dtype), batch_sizes))
    # torch draws the mask over the packed rows: so does this, for the same numbers from the same generator.
    return replace(prepared, call=call, dropout=lambda y: pad(F.dropout(pack(y), options.dropout, training=True)))


def _prepared(
    options: Options,
    weights: Weights,
    x: Tensor,
    states: States | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    finish: Callable[[Tensor, States], tuple[Any, States]],
    lay_out: Callable[[Tensor], Tensor],
    of_cell: bool = False,
) -> Prepared:
    expected = checks.state_shapes(CELLS[options.cell_name], weights, x.shape[1])
    if states is not None:
        checks.state_sizes(states, expected)
    gates, directions = len(CELLS[options.cell_name].gates), 1 + options.bidirectional
    checks.weight_shapes(options.label.lower(), gates, directions, x.shape[-1], weights)
    checks.same_device_and_dtype(x, states or (), [tensor for tensors in weights for tensor in tensors])
    dtype = checks.autocast_dtype(x)
    if dtype is not None:
        x, states = x.to(dtype), states and tuple(state.to(dtype) for state in states)
        weights = [[tensor.to(dtype) for tensor in tensors] for tensors in weights]
    call = Call(
        cell_name=options.cell_name,
        x=x,
        states0=states or tuple(x.new_zeros(shape) for shape in expected),
        weights=weights,
        bidirectional=options.bidirectional,
        dropout=options.dropout,
        training=options.training,
        lengths=lengths,
        resets=resets,
        recompute=options.recompute,
        of_cell=of_cell,
    )
    return Prepared(
        call,
        requested(options.backend and check_name(options.backend)),
        finish,
        lay_out,
        lambda y: F.dropout(y, options.dropout, training=True),
    )
