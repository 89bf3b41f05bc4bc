"""What goes to a peer's process and comes back: plain values and NumPy arrays, since torch is not loaded there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
DONE, FAILED = "done", "failed"
"""The first part of every answer."""


class Task(NamedTuple):
    cell: str
    """"rnn_tanh", "rnn_relu", "lstm" or "gru"."""
    layers: int
    bidirectional: bool
    weights: dict[str, Array]
    """By torch.nn's parameter names; gates in torch's order."""
    x: Array
    """(T, B, I)."""
    streaming: bool
    """Whether each call of the model is `chunk` steps and takes the states that the call before returned."""
    threads: int
    chunk: int = 1
    """Steps of a call in streaming."""

    @property
    def steps(self) -> int:
        """Of a call of the model."""
        return self.chunk if self.streaming else self.x.shape[0]

    @property
    def has_history(self) -> bool:
        """Whether the model's outputs include that of every step; that of a single one in streaming is h itself."""
        return not self.streaming or self.chunk > 1

    @property
    def hidden_size(self) -> int:
        return self.weights["weight_hh_l0"].shape[1]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Of a layer's states: (directions, B, H)."""
        return self.directions, self.x.shape[1], self.hidden_size

    @property
    def states(self) -> tuple[str, ...]:
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def state_inputs(self) -> list[str]:
        """The model's names of initial states: h of all layers, then c of all; in the order of `state_outputs`."""
        return [state_input(state, layer) for state in self.states for layer in range(self.layers)]

    @property
    def state_outputs(self) -> list[str]:
        return [state_output(state, layer) for state in self.states for layer in range(self.layers)]


def state_input(state: str, layer: int) -> str:
    """The name of a layer's initial state."""
    return f"{state}0_l{layer}"


def state_output(state: str, layer: int) -> str:
    """The name of a layer's final state."""
    return f"{state}n_l{layer}"


class CellTask(NamedTuple):
    """A layer of any cell, in one direction from zero states, and its gradients."""

    cell: str
    """Its name."""
    x_gates: tuple[str, ...]
    u_gates: tuple[str, ...]
    states: int
    weights: dict[str, Array]
    """By the parameters' names without layer, in their order."""
    x: Array
    """(T, B, I)."""
    dy: Array
    """(T, B, H): the gradient of the output."""
    threads: int

    @property
    def hidden_size(self) -> int:
        return self.dy.shape[2]

    @property
    def products(self) -> tuple[str, ...]:
        """The names of weights that are not the cell's own parameters."""
        return "weight_ih", "weight_hh", "bias_ih", "bias_hh"
