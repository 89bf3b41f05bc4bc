"""What `fastrnn.probe` computes from the arguments and results of one layer: figures for each time step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastrnn.backends import products, reference
from fastrnn.backends.layer import Gradients, Layer, Residuals
from fastrnn.cells import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def shown(cell: Cell) -> dict[str, str]:
    """The activations that are shown of a cell: of its gates in their order, of what else it saves, and of states."""
    names = (*cell.x_gates, *cell.u_gates, *cell.saved, *cell.states)
    return {name: cell.activations[name] for name in names if name in cell.activations}


@dataclass(frozen=True)
class Thresholds:
    """Beyond which an activation counts as saturated."""

    sigmoid: tuple[float, float]
    """below the first or above the second"""
    tanh: float
    """of the absolute value"""

    def saturated(self, activation: str, values: Tensor) -> Tensor:
        """Whether each value is; of a relu, whether it is zero, where its derivative is."""
        if activation == "relu":
            return values == 0
        if activation == "tanh":
            return values.abs() > self.tanh
        low, high = self.sigmoid
        return (values < low) | (values > high)


@dataclass(frozen=True)
class Figures:
    """What one call of a layer gave, at every time step.

    Tensors are float64, (layers·directions, T): a row as in hn, a column as in the input, in either direction. Only
    sequences that are alive count (t < length); where there is none, a figure is NaN. A cell has one row, and a column
    for each of its calls.
    """

    label: str
    """the layer's class"""
    cell_name: str
    """the cell's: "lstm", "rnn_relu", or of another the name of its function"""
    activations: dict[str, str]
    """of each gate that is shown whether it is a sigmoid, a tanh or a relu"""
    directions: int
    sequences: Tensor
    """(T,) integers: how many sequences are alive"""
    gate_means: dict[str, Tensor]
    """the mean of each gate's activation over sequences and units: i, f, g, o of an LSTM, r, z, n of a GRU; and of a
    state that is one, as h of an RNN"""
    saturation: dict[str, Tensor]
    """the fraction of each gate's activations, over sequences and units, that lie beyond the thresholds of `probe`; of
    a relu's h, that are zero"""
    state_norms: dict[str, Tensor]
    """of each state, h first: the norm over units after the step, its mean over sequences"""
    gradient_norms: dict[str, Tensor] | None
    """of each state, h first: the norm, over sequences and units, of dL/dh_t, the loss's gradient with respect to the
    state after step t. It is the whole gradient, through the output and through all later steps, of an LSTM's c_t
    through h_t too, as `retain_grad` gives it in an unrolled loop. None before the first backward; of the last one
    through this call, with whatever scale its loss had."""
    gradient_gains: Tensor | None
    """by what factor step t scales the gradient that passes it: the norm of what it hands on to the states before it,
    over the norm of what arrives at the states after it (h_t and c_t, each as the step's result), both of all states
    together. A loss at a single step falls or grows by their product. Where losses enter at many steps, the fresh
    gradient is among what arrives, and the product is an estimate. Sequences that a reset cuts there are left out. NaN
    where no gradient arrives."""

    @property
    def rows(self) -> list[str]:
        """What each row is: "layer 0", "layer 0 reverse", "layer 1", ..."""
        names = [" reverse" * direction for direction in range(self.directions)]
        layers = len(next(iter(self.state_norms.values()))) // self.directions
        return [f"layer {layer}{name}" for layer in range(layers) for name in names]

    def summary(self) -> str:
        """A table for people, and below it what stands out."""
        from fastrnn.probe_report import summary

        return summary({self.label: self})

    def plot(self, path: str | Path | None = None) -> Figure:
        """A matplotlib Figure: gate means, saturation and gradient norms by time step; written to `path` if given.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from fastrnn.probe_report import plot

        return plot({self.label: self}, path)


def joined(parts: Sequence[Figures], dim: int) -> Figures:
    """The figures of several layers as those of a stack (dim 0), or of several calls as those of one (dim 1)."""
    first = parts[0]

    def gradients(part: Figures) -> dict[str, Tensor]:
        missing = {name: torch.full_like(norms, torch.nan) for name, norms in part.state_norms.items()}
        return part.gradient_norms or missing

    def gains(part: Figures) -> Tensor:
        missing = torch.full_like(next(iter(part.state_norms.values())), torch.nan)
        return missing if part.gradient_gains is None else part.gradient_gains

    def join(groups: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([group[name] for group in groups], dim) for name in groups[0]}

    known = any(part.gradient_norms is not None for part in parts)
    return replace(
        first,
        sequences=first.sequences if dim == 0 else torch.cat([part.sequences for part in parts]),
        gate_means=join([part.gate_means for part in parts]),
        saturation=join([part.saturation for part in parts]),
        state_norms=join([part.state_norms for part in parts]),
        gradient_norms=join([gradients(part) for part in parts]) if known else None,
        gradient_gains=torch.cat([gains(part) for part in parts], dim) if known else None,
    )


def of_forward(label: str, layer: Layer, histories: Sequence[Tensor], thresholds: Thresholds) -> Figures:
    """The figures of a layer but for the gradients; `histories` are all states of all steps, as `Forward.states`."""
    live = _live(layer)
    means: dict[str, list[Tensor]] = {}
    saturation: dict[str, list[Tensor]] = {}
    norms: dict[str, list[Tensor]] = {}
    for direction in range(layer.directions):
        own = _of_direction(layer, direction, histories)
        values = dict(zip(layer.cell.states, own, strict=True))
        values |= zip(layer.cell.saved, products.recomputed_gates(layer, direction, own), strict=True)
        for gate, activation in shown(layer.cell).items():
            means.setdefault(gate, []).append(_mean(values[gate], live))
            saturation.setdefault(gate, []).append(_mean(thresholds.saturated(activation, values[gate]), live))
        for state, history in zip(layer.cell.states, own, strict=True):
            norm = torch.linalg.vector_norm(history, dim=-1, dtype=torch.float64, keepdim=True)
            norms.setdefault(state, []).append(_mean(norm, live))

    def stacked(rows: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack(each) for name, each in rows.items()}

    return Figures(
        label,
        layer.cell.name,
        shown(layer.cell),
        layer.directions,
        live.sum(1),
        stacked(means),
        stacked(saturation),
        stacked(norms),
        gradient_norms=None,
        gradient_gains=None,
    )


def of_backward(
    layer: Layer, histories: Sequence[Tensor], d_states: Sequence[Tensor | None], d_finals: Sequence[Tensor | None]
) -> tuple[dict[str, Tensor], Tensor]:
    """`Figures.gradient_norms` and `gradient_gains` of a layer, from the gradients of its results: see `Gradients`."""
    live, grads = _live(layer), Gradients(list(d_states), list(d_finals))
    norms: dict[str, list[Tensor]] = {name: [] for name in layer.cell.states}
    gains = []
    for direction in range(layer.directions):
        own = reference.kept_of(layer, direction, Residuals(list(histories)))
        arriving, handed_on = _gradients(layer, direction, own, grads)
        for name, gradient in zip(layer.cell.states, _whole_gradients(layer, direction, own, arriving), strict=True):
            norms[name].append(_norm(gradient, live))
        cut = products.cuts(layer, direction)
        uncut = live if cut is None else live & ~cut
        gains.append(_norm(torch.cat(handed_on, -1), uncut) / _norm(torch.cat(arriving, -1), uncut))
    return {name: torch.stack(rows) for name, rows in norms.items()}, torch.stack(gains)


def _gradients(
    layer: Layer, direction: int, kept: reference.Kept, grads: Gradients
) -> tuple[list[Tensor], list[Tensor]]:
    """What reaches the states after each step, and what it hands on to the states before it: (T, B, F) each."""
    arriving, handed_on = ([torch.zeros_like(history) for history in kept.histories] for _ in range(2))

    def observe(t: int, step: reference.BackwardStep) -> None:
        for rows, values in zip(arriving + handed_on, step.d_after + step.d_before, strict=True):
            rows[t] = values

    reference.backward_recurrence(layer, direction, kept, grads, observe)
    return arriving, handed_on


def _whole_gradients(
    layer: Layer, direction: int, kept: reference.Kept, arriving: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """What reaches each state after its step, (T, B, F): an LSTM's c gets its share of h's, projected or not."""
    unprojected = reference.unprojected(layer, direction, tuple(arriving))
    own = products.own_values(layer, direction, layer.state_dtype)
    whole = layer.cell.d_states(unprojected, kept.saved, kept.before, tuple(kept.histories), *own)
    return (arriving[0], *whole[1:]) if layer.projected else whole


def _live(layer: Layer) -> Tensor:
    """(T, B) bool: whether step t lies within its sequence."""
    live = products.live_steps(layer)
    return torch.ones(layer.x.shape[:2], dtype=torch.bool, device=layer.x.device) if live is None else live


def _of_direction(layer: Layer, direction: int, histories: Sequence[Tensor]) -> list[Tensor]:
    """One direction's histories (T, B, F) in the state dtype."""
    return [products.direction_slice(layer, direction, history).to(layer.state_dtype) for history in histories]


def _mean(values: Tensor, live: Tensor) -> Tensor:
    """(T,) float64: the mean of (T, B, F) where a sequence is alive, NaN where none is."""
    total = torch.where(live[..., None], values, 0).sum((1, 2), dtype=torch.float64)
    return total / (live.sum(1) * values.shape[-1])


def _norm(values: Tensor, rows: Tensor) -> Tensor:
    """(T,) float64: the norm of (T, B, F) where `rows` (T, B) says, NaN where it says so nowhere.

    In float64, since the square of a gradient that has all but vanished is zero in float32.
    """
    norm = torch.linalg.vector_norm(torch.where(rows[..., None], values, 0), dim=(1, 2), dtype=torch.float64)
    return torch.where(rows.any(1), norm, torch.nan)
