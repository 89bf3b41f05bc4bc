"""What is measured: a cell, in inference or training, at one shape; and the data that every contender gets."""

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
MODES = ("inference", "training")
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
    "gpu": tuple(Shape(T, B, H, H) for H in (32, 64, 128) for T in (128, 1024) for B in (16, 64, 256)),
}
"""The named tables of shapes: what a report shows by itself, one step or a few at a time, the survey, and the sizes
whose weights one program of a GPU can hold."""


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

    def grad_mode(self) -> AbstractContextManager[None]:
        """What a run of this case runs under: inference_mode, or with gradients."""
        return torch.enable_grad() if self.training else torch.inference_mode()


class Problem(NamedTuple):
    """A case's data, the same for every contender."""

    case: Case
    weights: dict[str, Tensor]
    """By torch.nn's parameter names, in its order and initialised as it does, in the case's dtype."""
    x: Tensor
    """(T, B, I), standard normal, in the case's dtype."""
    dy: Tensor
    """(T, B, H or 2·H), standard normal: the gradient of the outputs, in training."""
    resets: Tensor | None = None
    """(T, B) bool: True where a sequence is cut before that step; None in a case without resets."""
    copies: int = 1
    """Over how many copies of x, and of dy, a run's calls rotate: see `cuda.copies`."""

    @property
    def names(self) -> tuple[str, ...]:
        """What a run returns, in order: the outputs, the final states, and in training the gradients."""
        states = ("h_n", "c_n") if self.case.cell == "lstm" else ("h_n",)
        gradients = ("x", *self.weights) if self.case.training else ()
        return ("ys", *states, *(f"d {name}" for name in gradients))


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
    device = device or case.device
    name, arguments = MODULES[case.cell]
    module: nn.Module = getattr(namespace, name)(
        case.shape.I,
        case.shape.H,
        num_layers=case.layers,
        bidirectional=case.bidirectional,
        device=device,
        dtype=dtype,
        **arguments,
        **extra,
    )
    return module.train(case.training)


def make_problem(case: Case, seed: int = 0) -> Problem:
    """The data of `case`, the same for the same seed on every device; torch's own random state is left alone."""
    T, B, I, H = case.shape
    dtype, device = case.tensor_dtype, case.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = build_module(nn, case, dtype, device="cpu").state_dict()
        x = torch.randn(T, B, I).to(dtype)
        dy = torch.randn(T, B, H * (1 + case.bidirectional)).to(dtype)
        resets = torch.rand(T, B) < case.resets if case.resets else None
    return Problem(
        case,
        {name: weight.to(device) for name, weight in weights.items()},
        x.to(device),
        dy.to(device),
        resets if resets is None else resets.to(device),
    )
