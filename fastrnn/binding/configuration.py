"""What a module or a function is configured with, beside its parameters and arguments."""

from __future__ import annotations

from dataclasses import dataclass

from fastrnn.cells import Cell
from fastrnn.cells.known import KNOWN


@dataclass(frozen=True)
class Configuration:
    """Of layers, or of a cell's module."""

    label: str
    """the class's name, for messages"""
    cell_name: str
    bidirectional: bool = False
    batch_first: bool = False
    dropout: float = 0.0
    training: bool = False
    recompute: bool = False
    backend: str | None = None
    """the one that it names, None for `use_backend`'s or the environment's"""
    prepacked: bool = False
    """whether inference may lay the weights out once"""
    recurrent_dropout: float = 0.0
    is_cell: bool = False
    """whether it is a cell's module, whose input has no dimension of time"""
    prepacked_weights: str = "float32"
    """the format of weights that are laid out once: see `Prepacking.prepack`"""

    @property
    def operator(self) -> str:
        """The name in messages of what fastrnn alone checks."""
        return self.label.lower()

    @property
    def cell(self) -> Cell:
        return KNOWN[self.cell_name]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1
