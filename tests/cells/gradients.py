"""A cell's gradients by autograd through its step and by its derivative, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastrnn.cells import Cell

Named = dict[str, Tensor]


@dataclass
class Arguments:
    """What a step takes."""

    gx: Tensor
    gh: Tensor
    before: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]

    def leaves(self) -> list[Tensor]:
        return [self.gx, self.gh, *self.before, *self.parameters, *self.inputs]


def arguments(cell: Cell, scale: float = 1.0, batch: int = 3, hidden: int = 5) -> Arguments:
    """Random ones in float64; all states and parameters are positive, as normalisers must be."""

    def shares(*shape: int) -> Tensor:
        return (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()

    def positive(*shape: int) -> Tensor:
        return (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()

    return Arguments(
        shares(batch, len(cell.x_gates), hidden),
        shares(batch, len(cell.u_gates), hidden),
        tuple(positive(batch, hidden) for _ in cell.states),
        tuple(positive(hidden) for _ in cell.parameters),
        tuple(positive(batch, hidden) for _ in cell.inputs),
    )


def by_autograd(cell: Cell, given: Arguments, d_after: tuple[Tensor, ...]) -> Named:
    """Also what reaches each state after the step, as d_ and its name: zero for those that stop the gradient."""
    after, _ = cell.step(given.gx, given.gh, given.before, given.parameters, given.inputs)
    # A state that is passed on is a leaf itself, and one that stops the gradient has no graph.
    places = [place for place, state in enumerate(after) if state.requires_grad]
    flowing = [after[place] for place in places]
    found = torch.autograd.grad(
        flowing, [*given.leaves(), *flowing], [d_after[place] for place in places], materialize_grads=True
    )
    names = ["gx", "gh", *(f"{state}_before" for state in cell.states), *cell.parameters, *cell.inputs]
    names += [f"{cell.states[place]}_after" for place in places]
    # A state that is made of parameters alone is one value of every sequence: not what its other users have read.
    return {name: d for name, d, of in zip(names, found, [*given.leaves(), *flowing], strict=True) if of.stride()[0]}


def by_derivative(cell: Cell, given: Arguments, d_after: tuple[Tensor, ...]) -> Named:
    """By `step_backward`, `gradients_outside` and `d_states`."""
    with torch.no_grad():
        given = replace(given, **{name: _detached(value) for name, value in vars(given).items()})
        extra = (given.before, given.parameters, given.inputs)
        after, saved = cell.step(given.gx, given.gh, *extra)
        known = (saved, given.before, after, given.parameters, given.inputs)
        d_states = cell.d_states(d_after, *known)
        blocks, d_before = cell.step_backward(d_after, *known)
        of_blocks = dict(zip(cell.outside, cell.gradients_outside(blocks, *known), strict=True))
        of_blocks = dict(zip(cell.blocks, blocks, strict=True)) | of_blocks
        assert all(d.shape == after[0].shape for d in (*blocks, *d_before, *d_states))
        stacked = torch.stack(blocks, -2)
        found = {
            "gx": cell.of_gates(stacked, cell.dgx),
            "gh": cell.of_gates(stacked, cell.dgh) if cell.dgh else torch.zeros_like(given.gh),
        }
        found |= {f"{state}_before": d for state, d in zip(cell.states, d_before, strict=True)}
        found |= {name: of_blocks[name].sum(0) for name in cell.parameters}
        found |= {name: of_blocks[name] for name in cell.inputs}
        found |= {f"{state}_after": d for state, d in zip(cell.states, d_states, strict=True)}
        for name in cell.outside:
            if name in cell.blocks:  # of u: the recurrence has it as well
                torch.testing.assert_close(of_blocks[name], blocks[cell.blocks.index(name)])
    return found


def _detached(value: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return tuple(tensor.detach() for tensor in value) if isinstance(value, tuple) else value.detach()


def assert_derivative(cell: Cell, given: Arguments) -> None:
    """The derivative is autograd's, of every gate, state, parameter and input of the step."""
    d_after = tuple(torch.randn_like(given.before[0]) for _ in cell.states)
    expected, got = by_autograd(cell, given, d_after), by_derivative(cell, given, d_after)
    assert expected.keys() <= got.keys()
    for name, d in expected.items():
        torch.testing.assert_close(
            got[name], d, equal_nan=True, msg=lambda text, name=name: f"{cell.name}, {name}: {text}"
        )
