"""A stack of layers: what a module or function was called with, once it is checked and laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastrnn.backends.layer import Layer
from fastrnn.cells import Cell
from fastrnn.cells.known import KNOWN
from fastrnn.cells.weights import parted


@dataclass  # frozen ones take longer to make
class Stack:
    """The arguments of a whole stack of layers, time first and batched, checked and cast. None is ever changed."""

    cell_name: str
    x: Tensor
    """(T, B, I)"""
    states0: tuple[Tensor, ...]
    """(layers·directions, B, P or H) for h, (layers·directions, B, H) for each other state"""
    weights: Sequence[Sequence[Tensor]]
    """for each layer and direction: weight_ih, weight_hh, bias_ih and bias_hh if any, weight_hr if any, and the cell's
    parameters; `parted` tells them apart"""
    bidirectional: bool = False
    dropout: float = 0.0
    training: bool = False
    lengths: Tensor | None = None
    """(B,) int64"""
    resets: Tensor | None = None
    """(T, B) bool"""
    recompute: bool = False
    prepacked: bool = False
    """whether inference may lay the weights out once"""
    return_states: bool = False
    """whether the states of every step are asked for"""
    of_cell: bool = False
    """whether it is a cell's step"""
    packed: tuple[Tensor, Tensor] | None = None
    """data (sum of lengths, I) and batch_sizes of a PackedSequence, of which x and lengths are the padded form"""
    inputs: Sequence[Tensor] = ()
    """(layers·directions, T, B, H) each: those of the steps that `Cell.inputs` names"""
    recurrent_mask: Tensor | None = None
    """(layers·directions, B, P or H): recurrent dropout's, where there is any; without numbers until it is drawn"""

    @property
    def cell(self) -> Cell:
        return KNOWN[self.cell_name]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def tensors(self) -> list[Tensor]:
        """All that a gradient may be asked for; of a packed call its data in the place of x."""
        x = self.x if self.packed is None else self.packed[0]
        return [x, *self.states0, *(tensor for weights in self.weights for tensor in weights), *self.inputs]

    @property
    def num_layers(self) -> int:
        return len(self.weights) // self.directions

    @property
    def hidden_size(self) -> int:
        return self.weights[0][0].shape[0] // len(self.cell.x_gates)

    @property
    def is_one_step(self) -> bool:
        """Whether it is one step of one layer without a projection: torch's cells compute that."""
        one = self.x.shape[0] == 1 and len(self.weights) == 1 and self.packed is None
        return one and not self.projected

    @property
    def projected(self) -> bool:
        return len(parted(self.cell, self.weights[0]).extras) > 0

    @property
    def biased(self) -> bool:
        return len(parted(self.cell, self.weights[0]).biases) > 0

    def layer(self, index: int, x: Tensor) -> Layer:
        """The layer number `index`, fed with x (T, B, ·)."""
        cell, directions = self.cell, self.directions
        own = slice(index * directions, (index + 1) * directions)
        weights = [parted(cell, each) for each in self.weights[own]]
        return Layer(
            cell_name=self.cell_name,
            x=x,
            w_ih=[w.w_ih for w in weights],
            w_hh=[w.w_hh if w.w_hh.dim() == 3 else w.w_hh.unsqueeze(0) for w in weights],
            biases=[bias for w in weights for bias in w.biases],
            extras=[extra for w in weights for extra in w.extras],
            states0=[state[own] for state in self.states0] if directions < len(self.weights) else list(self.states0),
            lengths=self.lengths,
            resets=self.resets,
            reverse=False,
            recurrent_mask=None if self.recurrent_mask is None else self.recurrent_mask[own],
            parameters=[parameter for w in weights for parameter in w.parameters],
            inputs=[value[own] for value in self.inputs],
        )
