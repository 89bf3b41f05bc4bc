"""How callers lay their tensors out, and how these become a `Stack`'s, time first and batched, and results go back.

A layout checks its arguments' dimensions, sizes and types when it is made, as far as their shapes tell; it converts
them in every call.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks
from fastrnn.binding import padding
from fastrnn.binding.configuration import Configuration
from fastrnn.lengths import Lengths, on_device

States = tuple[Tensor, ...]


class Layout:
    """Of tensors: (T, B, I), (B, T, I) with `batch_first`, (T, I) unbatched; of a cell (B, I) or (I,)."""

    def __init__(self, configuration: Configuration, dims: int) -> None:
        self.operator, self.dropout = configuration.operator, configuration.dropout
        self.is_cell, self.batched = configuration.is_cell, dims == (2 if configuration.is_cell else 3)
        self.swaps = configuration.batch_first and self.batched and not self.is_cell

    def x(self, input: Tensor) -> Tensor:
        """The input as (T, B, I)."""
        if self.is_cell:
            input = input if self.batched else input.unsqueeze(0)
            return input.unsqueeze(0)
        if not self.batched:
            return input.unsqueeze(1)
        return input.transpose(0, 1) if self.swaps else input

    def states(self, states: States) -> States:
        """(layers·directions, B, F) each."""
        if self.is_cell:
            states = states if self.batched else tuple(state.unsqueeze(0) for state in states)
            return tuple(state.unsqueeze(0) for state in states)
        return states if self.batched else tuple(state.unsqueeze(1) for state in states)

    def lengths(self, lengths: Lengths | None, x: Tensor) -> Tensor | None:
        """(B,) int64 beside x (T, B, I), if there are any."""
        if lengths is None:
            return None
        steps, batch = x.shape[:2]
        return on_device(self.operator, lengths, batch if self.batched else None, steps, x.device)

    def resets(self, resets: Tensor | None, input: Tensor) -> Tensor | None:
        """(T, B), if there are any."""
        if resets is None:
            return None
        names = ("BT" if self.swaps else "TB") if self.batched else "T"
        checks.resets(self.operator, resets, tuple(input.shape[:-1]), names, input.device)
        if not self.batched:
            return resets.unsqueeze(1)
        return resets.t() if self.swaps else resets

    def step_input(self, name: str, value: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """An input of the steps as (layers·directions, T, B, H), which are `sizes`, from one that broadcasts to that as
        the caller lays tensors out: without T of a cell, without B unbatched, and with B before T where `swaps`."""
        groups, steps, batch, hidden = sizes
        whole: tuple[int, ...]
        if self.is_cell:
            whole, named = ((batch, hidden), "BH") if self.batched else ((hidden,), "H")
        elif not self.batched:
            whole, named = (groups, steps, hidden), "NTH"
        else:
            whole, named = ((groups, batch, steps, hidden), "NBTH") if self.swaps else (sizes, "NTBH")
        checks.broadcastable(self.operator, name, value, whole, named)
        value = value.expand(whole)
        if self.is_cell:
            return value.expand(sizes)
        if not self.batched:
            return value.unsqueeze(2)
        return value.transpose(1, 2) if self.swaps else value

    def dropped(self, output: Tensor) -> Tensor:
        """What the next layer reads, in training."""
        return F.dropout(output, self.dropout, training=True)

    def recurrent_mask(self, like: Tensor, rate: float) -> Tensor:
        """Recurrent dropout's mask, drawn as large as `like` (layers·directions, B, F)."""
        return F.dropout(like.new_ones(like.shape), rate, training=True)

    def output(self, output: Tensor) -> Any:
        """The other way round: a stack's output (T, B, F), as the input was laid out."""
        if not self.batched:
            return output.squeeze(1)
        return output.transpose(0, 1) if self.swaps else output

    def finals(self, finals: States) -> States:
        """And its final states."""
        if self.is_cell:
            finals = tuple(final.squeeze(0) for final in finals)
            return finals if self.batched else tuple(final.squeeze(0) for final in finals)
        return finals if self.batched else tuple(final.squeeze(1) for final in finals)

    def history(self, history: Tensor) -> Tensor:
        """And a state of every step, (layers·directions, T, B, F)."""
        if not self.batched:
            return history.squeeze(2)
        return history.transpose(1, 2) if self.swaps else history


class PackedLayout(Layout):
    """Of a PackedSequence, which runs padded with lengths, its sequences in their sorted order."""

    def __init__(self, configuration: Configuration, sequence: PackedSequence) -> None:
        super().__init__(configuration, 3)
        checks.packed(self.operator, sequence)
        self.data, batch_sizes, self.sorted, self.unsorted = sequence
        # A size, where there is one, rather than data: one graph then serves every batch.
        self.batch = int(batch_sizes[0]) if self.sorted is None else self.sorted.shape[0]
        self.steps, self.compiled = batch_sizes.shape[0], torch.compiler.is_compiling()
        if not self.compiled:
            batch_sizes = batch_sizes.resolve_neg().contiguous()  # torch's functions read its memory as it lies there
        self.batch_sizes = batch_sizes
        self.own_lengths = (torch.arange(self.batch, device=batch_sizes.device)[:, None] < batch_sizes).sum(1)

    def x(self, input: Any) -> Tensor:
        """Its data, padded."""
        return self._pad(self.data)

    def states(self, states: States) -> States:
        """In the sequences' sorted order."""
        return states if self.sorted is None else tuple(state.index_select(1, self.sorted) for state in states)

    def lengths(self, lengths: Any, x: Tensor) -> Tensor:
        """The sequences' own."""
        return self.own_lengths.to(x.device)

    def resets(self, resets: Tensor | None, input: Any) -> Tensor | None:
        """In the sequences' sorted order."""
        if resets is None:
            return None
        sizes = (self.batch, self.steps) if self.swaps else (self.steps, self.batch)
        checks.resets(self.operator, resets, sizes, "BT" if self.swaps else "TB", self.data.device)
        resets = resets.t() if self.swaps else resets
        return resets if self.sorted is None else resets.index_select(1, self.sorted)

    def step_input(self, name: str, value: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """In the sequences' sorted order."""
        value = super().step_input(name, value, sizes)
        return value if self.sorted is None else value.index_select(2, self.sorted)

    def dropped(self, output: Tensor) -> Tensor:
        """torch draws the mask over the packed rows: so does this, for the same numbers from the same generator."""
        return self._pad(super().dropped(self._pack(output)))

    def recurrent_mask(self, like: Tensor, rate: float) -> Tensor:
        """Drawn in the caller's order, so that a sequence has the mask that it has in a padded batch."""
        return self.states((super().recurrent_mask(like, rate),))[0]

    def output(self, output: Tensor) -> PackedSequence:
        """A stack's output, packed already by torch's kernels."""
        rows = output if output.dim() == self.data.dim() else self._pack(output)
        return PackedSequence(rows, self.batch_sizes, self.sorted, self.unsorted)

    def finals(self, finals: States) -> States:
        """In the caller's order."""
        return finals if self.unsorted is None else tuple(final.index_select(1, self.unsorted) for final in finals)

    def history(self, history: Tensor) -> Tensor:
        """Padded, in the caller's order."""
        history = history if self.unsorted is None else history.index_select(2, self.unsorted)
        return history.transpose(1, 2) if self.swaps else history

    def _pad(self, rows: Tensor) -> Tensor:
        if self.compiled:
            return padding.pad(rows, self.batch_sizes, self.batch)
        return torch._VF._pad_packed_sequence(rows, self.batch_sizes, False, 0.0, self.steps)[0]

    def _pack(self, output: Tensor) -> Tensor:
        if self.compiled or self.batch == 0:  # which torch's function refuses, though its layers take it
            return padding.pack(output, self.batch_sizes, self.data.shape[0])
        return torch._VF._pack_padded_sequence(output, self.own_lengths, False)[0]
