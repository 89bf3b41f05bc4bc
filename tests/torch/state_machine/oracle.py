"""What torch.nn's modules give for calls that they do not take: with lengths, with resets; and for autocast."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from tests.torch.state_machine.twins import Twins


class Segment(NamedTuple):
    """Steps of one sequence between two cuts."""

    row: int
    start: int
    stop: int
    after_cut: bool
    last: bool


def cut_up(twins: Twins, x: Tensor, hx: Any, lengths: list[int], resets: list[list[bool]]) -> tuple[Tensor, Any]:
    """By torch.nn's module on a packed batch of all segments; x is (T, B, I), `resets` by step and sequence."""
    steps, batch, _ = x.shape
    segments = [segment for row in range(batch) for segment in _segments(row, lengths[row], resets)]
    segments.sort(key=lambda segment: segment.start - segment.stop)  # the longest first, those of a row in order
    states = [hx] if isinstance(hx, Tensor) else list(hx or ())
    states = states or [x.new_zeros(twins.state_shape(batch, width)) for width in twins.widths]
    if not segments:
        begun = states[0] if len(states) == 1 else tuple(states)
        zero = 0 * twins.theirs(PackedSequence(x[0], torch.tensor([batch])), begun)[0].data.sum()  # with gradients
        y = x.new_zeros(steps, batch, twins.directions * twins.widths[0]) + zero
        return y, states[0] + zero if len(states) == 1 else tuple(state + zero for state in states)
    longest = segments[0].stop - segments[0].start
    alive = [[one for one in segments if one.stop - one.start > step] for step in range(longest)]
    index = torch.tensor([(one.start + step) * batch + one.row for step, ones in enumerate(alive) for one in ones])
    packed = PackedSequence(x.flatten(0, 1)[index], torch.tensor([len(ones) for ones in alive]))
    forward = [batch if one.after_cut else one.row for one in segments]
    backward = [one.row if one.last else batch for one in segments]
    begun = [_rows(twins, torch.cat((h, torch.zeros_like(h[:, :1])), 1), forward, backward) for h in states]
    output, after = twins.theirs(packed, begun[0] if len(begun) == 1 else tuple(begun))
    y = x.new_zeros(steps * batch, output.data.shape[-1]).index_copy(0, index, output.data)
    ends = [(after,), after][isinstance(after, tuple)]
    numbers = {(one.row, one.start): number for number, one in enumerate(segments)}
    lasts = {one.row: number for number, one in enumerate(segments) if one.last}
    forward = [lasts.get(row, len(segments) + row) for row in range(batch)]
    backward = [numbers.get((row, 0), len(segments) + row) for row in range(batch)]
    finals = [_rows(twins, torch.cat((end, h), 1), forward, backward) for end, h in zip(ends, states, strict=True)]
    return y.view(steps, batch, -1), finals[0] if len(finals) == 1 else tuple(finals)


def _segments(row: int, length: int, resets: list[list[bool]]) -> list[Segment]:
    bounds = sorted({0, length, *(t for t in range(length) if resets[t][row])})
    return [Segment(row, start, stop, start > 0 or resets[0][row], stop == length) for start, stop in pairwise(bounds)]


def _rows(twins: Twins, states: Tensor, forward: list[int], backward: list[int]) -> Tensor:
    """Of a state (layers·directions, ·, F), those rows for each direction."""
    if twins.directions == 1:
        return states[:, forward]
    return torch.stack((states[0::2, forward], states[1::2, backward]), 1).flatten(0, 1)


def reference(twins: Twins, x: Any, hx: Any, **options: Any) -> Any:
    """By `fastrnn.functional` and plain PyTorch, with the parameters of torch.nn's module."""
    module, name = twins.theirs, twins.kind.name.removesuffix("Cell").lower()
    if name == "rnn":
        relu = module.nonlinearity == "relu" if twins.kind.cell else module.mode == "RNN_RELU"
        options["nonlinearity"] = "relu" if relu else "tanh"
    compute = getattr(fastrnn.functional, name)
    if not twins.kind.cell:
        options |= {"bidirectional": module.bidirectional, "batch_first": module.batch_first}
        options |= {"dropout": module.dropout, "training": module.training}
        return compute(x, hx, twins.weights(), backend="reference", **options)
    states = hx if isinstance(hx, (tuple, list)) else () if hx is None else (hx,)
    given = [state.unsqueeze(0) for state in states]
    before = None if not given else given[0] if name != "lstm" else tuple(given)
    after = compute(x.unsqueeze(0), before, twins.weights(), backend="reference", **options)[1]
    return tuple(state[0] for state in after) if name == "lstm" else after[0]
