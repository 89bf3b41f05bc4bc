"""Random layers for the tests of backends and operators, and what computing one gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn import ops
from fastrnn.backends.layer import DIFFERENTIABLE, Layer
from fastrnn.cells import Cell
from fastrnn.cells.known import KNOWN


@dataclass(frozen=True)
class Shape:
    """A layer's sizes and features; `str()` of it names a test."""

    steps: int = 5
    batch: int = 3
    inputs: int = 4
    hidden: int = 6
    directions: int = 1
    projection: int = 0
    heads: int = 1
    bias: bool = True
    lengths: bool = False
    resets: bool = False
    reverse: bool = False
    contiguous: bool = True
    saturated: bool = False
    dropped: bool = False
    """whether recurrent dropout has a mask"""

    def __str__(self) -> str:
        defaults = Shape()
        sizes = f"T{self.steps}-B{self.batch}-I{self.inputs}-H{self.hidden}"
        sizes_and_bias = ("directions", "projection", "heads", "bias")
        names = (*sizes_and_bias, "lengths", "resets", "reverse", "contiguous", "saturated", "dropped")
        changed = [n if v is True else f"{n}={v}" for n in names if (v := getattr(self, n)) != getattr(defaults, n)]
        return "-".join([sizes, *changed])


AWKWARD = (
    Shape(),
    Shape(steps=1),
    Shape(batch=1),
    Shape(steps=1, batch=1, inputs=1, hidden=1),
    Shape(steps=9, batch=7, inputs=3, hidden=17),
    Shape(steps=4, batch=13, inputs=33, hidden=40, directions=2),
    Shape(steps=3, batch=2, inputs=70, hidden=65, reverse=True),
    Shape(bias=False),
    Shape(contiguous=False, directions=2),
    Shape(steps=6, batch=5, saturated=True),
    Shape(steps=7, batch=6, lengths=True),
    Shape(steps=7, batch=6, lengths=True, reverse=True),
    Shape(steps=7, batch=6, resets=True),
    Shape(steps=7, batch=6, resets=True, reverse=True),
    Shape(steps=11, batch=9, hidden=19, lengths=True, resets=True, directions=2),
    Shape(steps=0, directions=2),
    Shape(batch=0, directions=2),
)
"""Sizes around the edges of tiles and vectors, and every feature once alone and once with others."""

DROPPED = (
    Shape(steps=3, batch=5, hidden=17, dropped=True),
    Shape(steps=5, batch=9, hidden=20, heads=2, lengths=True, resets=True, directions=2, dropped=True),
)
"""Where there is no mask the first is computed by a kernel of few steps, which has none."""

PROJECTED = tuple(replace(shape, projection=min(3, shape.hidden - 1)) for shape in AWKWARD if shape.hidden > 1)


SATURATING = 30.0
"""Input weights larger by this factor drive most gates to 0 or 1; recurrent weights stay, which keeps it from chaos."""


def random_layer(cell_name: str, shape: Shape) -> Layer:
    """A layer of float64 tensors with nonzero states, weights of the size that torch initialises with."""
    cell = KNOWN[cell_name]
    of_x, of_u = len(cell.x_gates), len(cell.u_gates)
    hidden, output = shape.hidden, shape.projection or shape.hidden
    bound = hidden**-0.5

    def weight(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float64).uniform_(-bound, bound)

    def each(*sizes: int) -> list[Tensor]:
        return [weight(*sizes) for _ in range(shape.directions)]

    head = hidden // shape.heads
    x = torch.randn(shape.steps, shape.batch, shape.inputs, dtype=torch.float64)
    if not shape.contiguous:
        x = torch.randn(shape.batch, shape.inputs, shape.steps, 2, dtype=torch.float64)[..., 0].permute(2, 0, 1)
    lengths = torch.randint(0, shape.steps + 1, (shape.batch,)) if shape.lengths else None
    if lengths is not None:
        lengths[0], lengths[-1] = 0, shape.steps
        x[torch.arange(shape.steps)[:, None] >= lengths] = float("nan")
    inputs = [torch.rand(shape.directions, *x.shape[:2], hidden, dtype=torch.float64) for _ in cell.inputs]
    for value in inputs if lengths is not None else ():
        value[:, torch.arange(shape.steps)[:, None] >= lengths] = float("nan")
    return Layer(
        cell_name,
        x,
        [SATURATING * w if shape.saturated else w for w in each(of_x * hidden, shape.inputs)],
        each(shape.heads, of_u * head, output if shape.heads == 1 else head),
        [weight(of * hidden) for _ in range(shape.directions * shape.bias) for of in (of_x, of_u)],
        each(shape.projection, hidden) if shape.projection else [],
        [
            torch.randn(shape.directions, shape.batch, output if index == 0 else hidden, dtype=torch.float64)
            for index in range(len(cell.states))
        ],
        lengths,
        torch.rand(shape.steps, shape.batch) < 0.3 if shape.resets else None,
        shape.reverse,
        recurrent_mask=F.dropout(x.new_ones(shape.directions, shape.batch, output), 0.4) if shape.dropped else None,
        parameters=[weight(hidden) for _ in range(shape.directions) for _ in cell.parameters],
        inputs=inputs,
    )


def any_layer(cell: Cell, shape: Shape) -> Layer:
    """A random layer of any cell that is known, with states at which none divides by nearly nothing."""
    layer = random_layer(cell.key, shape)
    return replace(layer, states0=[state.abs() + 0.5 for state in layer.states0])


def parameters(layer: Layer) -> dict[str, Tensor]:
    """Every differentiable argument by name, in the operators' order."""
    groups = layer.groups()
    return {
        f"{row.name}[{index}]" if row.type == "Tensor[]" else row.name: tensor
        for row in DIFFERENTIABLE
        for index, tensor in enumerate(groups[row.name])
    }


def rounded(layer: Layer, dtype: torch.dtype) -> Layer:
    """The layer in float64, its values those that `dtype` can hold: what a result in `dtype` is to be judged by."""
    return cast(cast(layer, dtype), torch.float64)


def cast(layer: Layer, dtype: torch.dtype) -> Layer:
    """The same layer in another dtype, its floating tensors fresh leaves that require gradients."""

    def leaf(tensor: Tensor) -> Tensor:
        # `to` keeps the strides, so that a non-contiguous input stays one.
        return tensor.detach().to(dtype, copy=True).requires_grad_() if tensor.is_floating_point() else tensor

    return layer.with_tensors(leaf)


def cotangents(layer: Layer) -> tuple[list[Tensor], list[Tensor]]:
    """Random float64 gradients for the first state's history and every final state."""
    steps, batch = layer.x.shape[:2]
    d_output = torch.randn(steps, batch, layer.directions * layer.output_size, dtype=torch.float64)
    return [d_output], [torch.randn_like(state) for state in layer.states0]


def compute(
    layer: Layer, dtype: torch.dtype, backend: str, grads: tuple[list[Tensor], list[Tensor]], recompute: bool = False
) -> dict[str, Tensor]:
    """The outputs, the final states and every gradient by name, computed by an operator backend in `dtype`."""
    layer = cast(layer, dtype)
    result = ops.forward(layer, history=True, gates=not recompute, backend=backend)
    d_states, d_finals = ([d.to(dtype) for d in group] for group in grads)
    outputs = {"output": result.states[0], **{f"final[{i}]": final for i, final in enumerate(result.finals)}}
    named = parameters(layer)
    gradients = torch.autograd.grad([*outputs.values()], [*named.values()], d_states + d_finals)
    return outputs | {f"d {name}": grad for name, grad in zip(named, gradients, strict=True)}
