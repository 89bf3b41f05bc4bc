"""Modules of any cell as plain loops over its step: another way to the same numbers, which autograd goes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastrnn
from fastrnn.cells import Cell
from tests.cells.zoo import ZOO
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME

States = tuple[Tensor, ...]


def recurrent(name: str, **options: Any) -> fastrnn.Recurrent:
    """Of one of the zoo's cells, in float64 and by the reference unless said otherwise."""
    return fastrnn.Recurrent(ZOO[name], INPUT, HIDDEN, **{"dtype": torch.float64, "backend": "reference", **options})


def single(name: str, **options: Any) -> fastrnn.RecurrentCell:
    """As `recurrent`, of its step."""
    return fastrnn.RecurrentCell(
        ZOO[name], INPUT, HIDDEN, **{"dtype": torch.float64, "backend": "reference", **options}
    )


def groups(module: Any) -> int:
    """Layers times directions; of a single step one."""
    return getattr(module, "num_layers", 1) * (2 if getattr(module, "bidirectional", False) else 1)


def inputs_of(module: Any, *sizes: int) -> dict[str, Tensor]:
    """Inputs of the steps in (0, 1), of sizes (N, T, B, H) unless others are given."""
    sizes = sizes or (groups(module), TIME, BATCH, HIDDEN)
    dtype = next(module.parameters()).dtype
    return {name: torch.rand(sizes, dtype=dtype).requires_grad_() for name in module.cell.inputs}


def states_of(module: Any, *sizes: int) -> States:
    """At which no cell of the zoo divides by nearly nothing, of sizes (N, B, H) unless others are given."""
    sizes = sizes or (groups(module), BATCH, HIDDEN)
    dtype = next(module.parameters()).dtype
    return tuple((torch.rand(sizes, dtype=dtype) + 0.5).requires_grad_() for _ in module.cell.states)


def as_hx(states: tuple[Any, ...]) -> Any:
    """As a module takes them."""
    return states if len(states) > 1 else states[0]


def by_loops(
    module: fastrnn.Recurrent,
    x: Tensor,
    states: Sequence[Tensor],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    inputs: Sequence[Tensor] = (),
    mask: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The output (T, B, ·), the final states (N, B, H), and those of every step (N, T, B, H).

    x is (T, B, I), the states are (N, B, H), lengths (B,), resets (T, B) and inputs (N, T, B, H). The mask (N, B, H)
    is that of h in the recurrent product.
    """
    steps, batch = x.shape[:2]
    lengths = torch.full((batch,), steps) if lengths is None else lengths
    live = (torch.arange(steps)[:, None] < lengths)[..., None]
    cuts = live & (torch.zeros(steps, batch, 1, dtype=torch.bool) if resets is None else resets[..., None])
    finals, histories = [], []
    for layer in range(module.num_layers):
        ways = ["", "_reverse"] if module.bidirectional else [""]
        outputs = []
        for way, suffix in enumerate(ways):
            k = layer * len(ways) + way
            own, fed = [state[k] for state in states], [value[k] for value in inputs]
            left = None if mask is None else mask[k]
            last, told = one_direction(module, f"_l{layer}{suffix}", x, own, live, cuts, way == 1, fed, left)
            finals.append(last)
            histories.append(told)
            outputs.append(told[0])
        x = torch.cat(outputs, -1)
        if module.training and layer < module.num_layers - 1:
            x = F.dropout(x, module.dropout)
    return (
        torch.cat([history[0] for history in histories[-len(ways) :]], -1),
        [torch.stack(each) for each in zip(*finals, strict=True)],
        [torch.stack(each) for each in zip(*histories, strict=True)],
    )


def one_direction(
    module: Any,
    suffix: str,
    x: Tensor,
    own: list[Tensor],
    live: Tensor,
    cuts: Tensor,
    backwards: bool,
    fed: list[Tensor],
    mask: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The final states (B, H), and those of every step (T, B, H), zero where it is not live."""
    steps = x.shape[0]
    told: dict[int, list[Tensor]] = {}
    for t in range(steps)[::-1] if backwards else range(steps):
        place = t + 1 if backwards else t
        cut = cuts[place] if place < steps else torch.zeros_like(cuts[0])
        before = [state.masked_fill(cut, 0) for state in own]
        read = [value[t].masked_fill(~live[t], 0) for value in (x, *fed)]
        after = step(module, suffix, read[0], before, read[1:], mask)
        own = [torch.where(live[t], new, old) for new, old in zip(after, before, strict=True)]
        told[t] = [new.masked_fill(~live[t], 0) for new in after]
    if not told:
        return own, [state.new_empty((0, *state.shape)) for state in own]
    return own, [torch.stack([told[t][k] for t in range(steps)]) for k in range(len(own))]


def step(
    module: Any, suffix: str, x: Tensor, before: Sequence[Tensor], fed: Sequence[Tensor], mask: Tensor | None = None
) -> States:
    """The states after one step of x (B, I), (B, H) each, by the module's parameters of this suffix."""
    cell: Cell = module.cell
    gx = F.linear(x, getattr(module, f"weight_ih{suffix}"), getattr(module, f"bias_ih{suffix}", None))
    gh = before[0].new_empty((x.shape[0], 0))
    if cell.u_gates:
        h = before[0] if mask is None else before[0] * mask
        gh = F.linear(h, getattr(module, f"weight_hh{suffix}"), getattr(module, f"bias_hh{suffix}", None))
    parameters = tuple(getattr(module, name + suffix) for name in cell.parameters)
    hidden = before[0].shape[-1]
    gates = gx.unflatten(-1, (-1, hidden)), gh.unflatten(-1, (len(cell.u_gates), hidden))
    return cell.step(*gates, tuple(before), parameters, tuple(fed))[0]
