"""What is timed: a call of a layer or cell by both engines, over a grid and over sizes drawn at random."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice, product
from typing import NamedTuple

import torch

from benchmarks.cases import MODULES
from fastrnn.backends.cost import Sizes
from fastrnn.cells import CELLS

CELL_NAMES = ("rnn_tanh", "gru", "lstm")
"""rnn_relu differs from rnn_tanh in its activation only."""
GRID = (
    *product((1, 3, 8, 100), (1, 16, 128), ((32, 32), (256, 256), (512, 32), (32, 512))),
    (5, 500, (510, 32)),
    (5, 500, (1024, 16)),
    (1, 32, (1024, 1024)),
)
"""T, B, and I with H: the corners, so that nothing between them is beyond what was fitted."""
LARGEST = {"T": 200, "B": 512, "I": 1024, "H": 1024}
SMALLEST_H = 8
ROUND = 32
"""Of which half of the inputs' and hidden sizes are multiples, as most people choose them; vectors divide them."""
PRODUCTS = 3e8
"""Multiplications of a forward at most: some 10 ms."""
DTYPES = {"float32": 0.7, "float64": 0.1, "bfloat16": 0.12, "float16": 0.08}
"""How often each is drawn; the table needs the fewest points for what is close to float32's."""
BIDIRECTIONAL, PROJECTED, CELLS_SHARE = 0.15, 0.25, 0.25
"""How often layers are, LSTMs of them, and how often it is a cell rather than a layer."""


class Point(NamedTuple):
    """A call of one layer or cell. Every field is a plain value, to be compared and written as JSON."""

    cell: str
    training: bool
    T: int
    B: int
    I: int
    H: int
    threads: int
    dtype: str = "float32"
    directions: int = 1
    P: int = 0
    """the size of a projection, or 0"""
    is_cell: bool = False
    """whether the module is a cell's"""

    def __str__(self) -> str:
        kind = f"{MODULES[self.cell][0]}{'Cell' if self.is_cell else ''}"
        parts = [kind, "training" if self.training else "inference", f"{self.T}x{self.B}x{self.I}x{self.H}"]
        parts += [self.dtype] * (self.dtype != "float32")
        parts += ["bidirectional"] * (self.directions > 1)
        parts += [f"projected to {self.P}"] * (self.P > 0)
        return " ".join([*parts, f"{self.threads} thread{'s' * (self.threads > 1)}"])

    @property
    def sizes(self) -> Sizes:
        """As `fastrnn.backends.cost` takes them."""
        return Sizes(
            self.cell,
            self.T,
            self.B,
            self.I,
            self.H,
            self.P or self.H,
            self.directions,
            dtype=getattr(torch, self.dtype),
            training=self.training,
            is_cell=self.is_cell,
            threads=self.threads,
        )

    @property
    def products(self) -> float:
        """Multiplications of a forward."""
        cell = CELLS[self.cell]
        of_row = len(cell.x_gates) * self.I + len(cell.u_gates) * (self.P or self.H)
        return self.T * self.B * self.directions * self.H * of_row

    def grad_mode(self) -> AbstractContextManager[None]:
        """What a run of this point runs under: inference_mode, or with gradients."""
        return torch.enable_grad() if self.training else torch.inference_mode()


def planned(seed: int, threads: Sequence[int]) -> Iterator[Point]:
    """The grid, shuffled, with twice as many points drawn at random between, and then more of these for ever."""
    drawn, corners = drawn_points(seed, threads), list(grid(threads))
    for point in random.Random(seed).sample(corners, k=len(corners)):
        yield point
        yield from islice(drawn, 2)
    yield from drawn


def grid(threads: Sequence[int]) -> Iterator[Point]:
    """In float32; of a layer, and where there is one step of a cell."""
    for cell, training, count, (T, B, (I, H)) in product(CELL_NAMES, (False, True), sorted(set(threads)), GRID):
        point = Point(cell, training, T, B, I, H, count)
        if point.products <= PRODUCTS:
            yield point
            if T == 1:
                yield point._replace(is_cell=True)


def drawn_points(seed: int, threads: Sequence[int], dtypes: dict[str, float] = DTYPES) -> Iterator[Point]:
    """Points of sizes that are uniform in their logarithms, as many of each cell, with gradients and without."""
    draw = random.Random(f"{seed} drawn")

    def size(largest: int, least: int = 1, multiple: int = 1) -> int:
        drawn = round(math.exp(draw.uniform(math.log(least), math.log(largest))))
        return multiple * max(1, round(drawn / multiple))

    while True:
        is_cell = draw.random() < CELLS_SHARE
        multiple = draw.choice((1, ROUND))
        point = Point(
            draw.choice(CELL_NAMES),
            draw.random() < 0.5,
            1 if is_cell else size(LARGEST["T"]),
            size(LARGEST["B"]),
            size(LARGEST["I"], multiple=multiple),
            size(LARGEST["H"], SMALLEST_H, multiple),
            draw.choice(sorted(set(threads))),
            draw.choices(list(dtypes), list(dtypes.values()))[0],
            is_cell=is_cell,
        )
        if not is_cell:
            point = point._replace(directions=1 + (draw.random() < BIDIRECTIONAL))
            if point.cell == "lstm" and draw.random() < PROJECTED and point.H > 1:
                point = point._replace(P=draw.randint(1, point.H - 1))
        if point.products <= PRODUCTS:
            yield point
