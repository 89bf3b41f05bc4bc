"""Zoneout by a rate: the masks of cells whose steps take `keep_h`, say, for the state h.

A unit's state is kept for a step with the rate's probability. In training each step, sequence, unit, layer and
direction has its own draw; in evaluation the inputs are their expectation, the rate itself.

Source: Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations" (2017), arXiv 1606.01305.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn.cells import Cell

Zoneout = float | tuple[float, ...] | None


def kept_by(cell: Cell) -> list[str]:
    """The inputs of a cell's steps that zoneout draws, in the order of its states."""
    return [name for name in (f"keep_{state}" for state in cell.states) if name in cell.inputs]


def rates_of(label: str, cell: Cell, zoneout: Any) -> dict[str, float]:
    """The rate of each input that zoneout draws, empty where `zoneout` is None.

    Raises:
        ValueError: it is neither a number within [0, 1] nor one such for each of these inputs, or the cell has none.
    """
    if zoneout is None:
        return {}
    names = kept_by(cell)
    if not names:
        wanted = " or ".join(f"keep_{state}" for state in cell.states)
        raise ValueError(
            f"{label}: zoneout draws inputs of the steps, and {cell.name} has no {wanted}: "
            "fastrnn.cells.library.zoneout_lstm and zoneout_gru have"
        )
    each = tuple(zoneout) if isinstance(zoneout, (tuple, list)) else (zoneout,) * len(names)
    if len(each) != len(names) or not all(map(_is_rate, each)):
        raise ValueError(
            f"zoneout should be a number in range [0, 1] representing the probability of a unit keeping its state, or "
            f"one for each of {', '.join(names)}, got {zoneout!r}"
        )
    return dict(zip(names, each, strict=True))


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def step_input(rate: float, input: Any, sizes: Sequence[int] | None) -> Tensor:
    """What steps take for this rate, in the input's dtype: drawn by the generator of its device, of these sizes, or ()
    where nothing is to be drawn."""
    x = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(x, Tensor):  # which is refused later
        return torch.tensor(float(rate))
    if sizes is None or rate in (0, 1) or not x.is_floating_point():
        return x.new_full((), rate)
    return x.new_empty(tuple(sizes)).bernoulli_(rate)


def sizes_of(input: Any, groups: int, hidden: int, batch_first: bool) -> tuple[int, ...] | None:
    """(groups, T, B, H) as a layer's input lies, which may be packed; None of what is no input of a layer."""
    if isinstance(input, PackedSequence):
        batch_sizes, order = input.batch_sizes, input.sorted_indices
        if batch_sizes.dim() != 1 or not batch_sizes.shape[0]:
            return None
        batch = int(batch_sizes[0]) if order is None else order.shape[0]
        outer = (batch, batch_sizes.shape[0]) if batch_first else (batch_sizes.shape[0], batch)
        return (groups, *outer, hidden)
    if not isinstance(input, Tensor) or input.dim() not in (2, 3):
        return None
    return (groups, *input.shape[:-1], hidden)
