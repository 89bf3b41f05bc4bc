"""What is measured: a cell, in one of the modes, at one shape; and the data that every contender gets."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MODULES: dict[str, tuple[str, dict[str, str]]] = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}
"""For each cell, the class that torch.nn and fastrnn both have for it, and the arguments that select the cell."""

DEFAULT_CELLS = ("rnn_tanh", "lstm", "gru")
STREAMING, CELL = "streaming", "cell"
STEP_MODES = (STREAMING, CELL)
DEFAULT_MODES = ("inference", "training")
MODES = (*DEFAULT_MODES, *STEP_MODES)
"""A whole sequence, forward or with every gradient; or one step a call, which takes the states that the call before
returned, through the layer's module or through the cell's (as torch.nn.LSTM and torch.nn.LSTMCell)."""
STREAM_STEPS = 16
"""Of a run in the modes of one step a call; what is told is the time of one of them. Every run begins with zero states,
so that all runs return the same."""
TF32 = "tf32"
DTYPES = ("float32", "bfloat16", "float16", TF32)
"""Of the tensors; "tf32" is float32 tensors whose products may round their factors to TF32, which only GPUs do."""
DEVICES = ("cpu", "cuda")


class Shape(NamedTuple):
    """Time steps, batch, input size and hidden size."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return "x".join(str(size) for size in self)


SHAPES: dict[str, tuple[Shape, ...]] = {
    "default": tuple(Shape(100, B, H, H) for H in (64, 256) for B in (1, 32)),
    "streaming": tuple(Shape(T, 1, H, H) for T in (1, 10) for H in (64, 256)),
    "full": (
        *(Shape(T, 1, H, H) for T in (1, 10) for H in (64, 256)),
        *(Shape(100, B, H, H) for H in (64, 256) for B in (1, 8, 32, 128)),
        Shape(100, 32, 40, 200),  # features of speech, and sizes that no vector length divides
        Shape(50, 64, 512, 512),
        Shape(1000, 1, 80, 256),
        Shape(50, 1, 1024, 1024),
    ),
    "cpu": (
        Shape(1, 1, 64, 64),  # one step: latency
        Shape(1, 1, 80, 256),
        Shape(1, 32, 128, 512),
        Shape(1, 256, 64, 128),
        Shape(10, 1, 40, 64),  # short chunks
        Shape(10, 1, 256, 512),
        Shape(100, 1, 32, 32),  # one sequence: w_hh in the first-level cache, the second, and beyond
        Shape(100, 1, 40, 128),
        Shape(100, 1, 80, 256),
        Shape(100, 1, 512, 512),
        Shape(50, 1, 1024, 1024),
        Shape(1000, 1, 40, 64),  # and long ones
        Shape(1000, 1, 80, 200),
        Shape(100, 2, 64, 64),  # few rows: too few for a full tile
        Shape(100, 4, 80, 256),
        Shape(100, 8, 128, 512),
        Shape(200, 3, 13, 37),  # sizes that no vector length divides
        Shape(100, 16, 32, 64),  # rows for every thread
        Shape(100, 32, 40, 200),
        Shape(100, 32, 256, 256),
        Shape(50, 16, 512, 1024),
        Shape(100, 64, 128, 128),  # many rows: a product that fills the processor
        Shape(50, 64, 512, 512),
        Shape(100, 128, 64, 64),
        Shape(100, 128, 100, 250),
        Shape(20, 128, 1024, 768),
        Shape(20, 256, 256, 512),
        Shape(50, 256, 32, 32),
        Shape(500, 32, 24, 48),
    ),
    "gpu": tuple(Shape(T, B, H, H) for H in (32, 64, 128) for T in (128, 1024) for B in (16, 64, 256)),
}
"""The named tables of shapes: what a report shows by itself, one step or a few at a time, the survey, every regime of a
processor (a call is at most 30 GFLOP forward), and the sizes whose weights one program of a GPU can hold."""


@dataclass(frozen=True)
class Case:
    """One thing to measure. Every field is a plain value, so that a case can be compared, sent and written as JSON."""

    cell: str
    mode: str
    shape: Shape
    dtype: str = "float32"
    layers: int = 1
    bidirectional: bool = False
    device: str = "cpu"
    resets: float = 0.0
    """The probability, below 1, that a sequence is cut before a step; 0 for none, and no mask."""

    @property
    def label(self) -> str:
        parts = [self.cell, self.mode, str(self.shape)]
        if self.dtype != "float32":
            parts.append(self.dtype)
        if self.layers > 1:
            parts.append(f"{self.layers} layers")
        if self.bidirectional:
            parts.append("bidirectional")
        if self.resets:
            parts.append(f"resets {self.resets:g}")
        return " ".join(parts)

    @property
    def tensor_dtype(self) -> torch.dtype:
        """Of weights, data and results."""
        dtype: torch.dtype = getattr(torch, "float32" if self.dtype == TF32 else self.dtype)
        return dtype

    @property
    def training(self) -> bool:
        return self.mode == "training"

    @property
    def states(self) -> tuple[str, ...]:
        """The cell's."""
        from fastrnn.cells import CELLS

        return CELLS[self.cell].states

    @property
    def streaming(self) -> bool:
        """Whether a call is one step, which takes the states of the call before."""
        return self.mode in STEP_MODES

    @property
    def calls(self) -> int:
        """Of the module, in one run."""
        return STREAM_STEPS if self.streaming else 1

    def why_not(self) -> str | None:
        """Why there is no such thing as this case, or None."""
        if not self.streaming:
            return None
        if self.bidirectional:
            return "a sequence that comes step by step is not read backwards"
        if self.resets:
            return "resets are within a sequence"
        return "a cell is one layer" if self.mode == CELL and self.layers > 1 else None

    def grad_mode(self) -> AbstractContextManager[None]:
        """What a run of this case runs under: inference_mode, or with gradients."""
        return torch.enable_grad() if self.training else torch.inference_mode()


class Problem(NamedTuple):
    """A case's data, the same for every contender."""

    case: Case
    weights: dict[str, Tensor]
    """By torch.nn's parameter names, in its order and initialised as it does, in the case's dtype."""
    x: Tensor
    """(T, B, I), in streaming (STREAM_STEPS, B, I); standard normal, in the case's dtype."""
    dy: Tensor
    """(T, B, H or 2·H), standard normal: the gradient of the outputs, in training."""
    resets: Tensor | None = None
    """(T, B) bool: True where a sequence is cut before that step; None in a case without resets."""
    copies: int = 1
    """Over how many copies of x, and of dy, a run's calls rotate: see `cuda.copies`."""

    @property
    def names(self) -> tuple[str, ...]:
        """What a run returns, in order: the outputs, the final states, and in training the gradients.

        In streaming the outputs are the last step's, whose states carry all steps; a cell returns states alone.
        """
        states = [f"{state}_n" for state in self.case.states]
        gradients = ("x", *self.weights) if self.case.training else ()
        outputs = () if self.case.mode == CELL else ("ys",)
        return (*outputs, *states, *(f"d {name}" for name in gradients))


def parse_shape(text: str) -> Shape:
    """A shape from "TxBxH", where I = H, or "TxBxIxH". Raises ValueError for anything else, and for sizes below 1."""
    if not re.fullmatch(r"\d+(x\d+){2,3}", text):
        raise ValueError(f"shape {text!r}: expected TxBxH or TxBxIxH, as 100x32x256 or 100x32x80x256")
    sizes = [int(size) for size in text.split("x")]
    if min(sizes) < 1:
        raise ValueError(f"shape {text!r}: every size must be at least 1")
    T, B, *sizes = sizes
    return Shape(T, B, sizes[0], sizes[-1])


def parse_shapes(texts: list[str]) -> list[Shape]:
    """The shapes that `texts` name, each a table of `SHAPES` or a shape as in `parse_shape`, without repeats."""
    shapes: dict[Shape, None] = {}
    for text in texts:
        try:
            shapes.update(dict.fromkeys(SHAPES[text] if text in SHAPES else (parse_shape(text),)))
        except ValueError as error:
            raise ValueError(f"{error}, or a table: {', '.join(SHAPES)}") from None
    return list(shapes)


def build_module(
    namespace: ModuleType, case: Case, dtype: torch.dtype, device: str | None = None, **extra: Any
) -> nn.Module:
    """The module of `case` from `namespace`, torch.nn or fastrnn, with `extra` keyword arguments.

    It is on the case's device, or on `device`.
    """
    name, arguments = MODULES[case.cell]
    if case.mode == CELL:
        name = f"{name}Cell"
    else:
        extra |= {"num_layers": case.layers, "bidirectional": case.bidirectional}
    module: nn.Module = getattr(namespace, name)(
        case.shape.I, case.shape.H, device=device or case.device, dtype=dtype, **arguments, **extra
    )
    return module.train(case.training)


def make_problem(case: Case, seed: int = 0) -> Problem:
    """The data of `case`, the same for the same seed on every device; torch's own random state is left alone."""
    T, B, I, H = case.shape
    dtype, device = case.tensor_dtype, case.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = build_module(nn, case, dtype, device="cpu").state_dict()
        x = torch.randn(case.calls * T, B, I).to(dtype)
        dy = torch.randn(T, B, H * (1 + case.bidirectional)).to(dtype)
        resets = torch.rand(T, B) < case.resets if case.resets else None
    return Problem(
        case,
        {name: weight.to(device) for name, weight in weights.items()},
        x.to(device),
        dy.to(device),
        resets if resets is None else resets.to(device),
    )
