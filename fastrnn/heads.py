"""Heads: recurrent weights that are block-diagonal, a block for each group of D = H / N units.

With N heads a unit's gates see the states of its own head only: `weight_hh` is (N, Gu·D, D), each head's rows gate by
gate, in place of (Gu·H, H). The input, the biases and all states are those of a layer with one head.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrnn import checks
from fastrnn.module import Module

__all__ = ["dense", "dense_weights"]

Layer = TypeVar("Layer", bound=nn.Module)


def check(num_heads: Any) -> None:
    """That it is an int above 0, with torch.nn's words."""
    checks.types(int, num_heads=num_heads)
    if num_heads <= 0:
        raise ValueError("num_heads must be greater than zero")


def width(num_heads: Any, hidden_size: int) -> int:
    """D.

    Raises:
        TypeError: `num_heads` is no int.
        ValueError: it is not greater than zero, or does not divide `hidden_size`.
    """
    check(num_heads)
    if hidden_size % num_heads:
        raise ValueError(
            f"hidden_size must be divisible by num_heads, got hidden_size={hidden_size} and num_heads={num_heads}"
        )
    return hidden_size // int(num_heads)


def dense_weights(w_hh: Tensor, gates: int) -> Tensor:
    """The same product by one head: (N, Gu·D, D) of so many gates -> (Gu·H, H), zero outside of the blocks."""
    heads, size = w_hh.shape[0], w_hh.shape[2]
    by_head = w_hh.unflatten(1, (gates, size))
    placed = [F.pad(by_head[head], (head * size, (heads - 1 - head) * size)) for head in range(heads)]
    return torch.stack(placed, 1).flatten(0, 2)


def dense(module: Layer) -> Layer:
    """A copy of a layer, or of a `RecurrentCell`, with one head that computes the same.

    For whatever knows no heads, such as torch.nn: `fastrnn.to_torch(fastrnn.heads.dense(lstm))`. Its `weight_hh` has N
    times the numbers, all but the blocks 0, and computing with it takes N times the operations. Training changes them
    all: only its results, and its blocks' gradients, are those of the layer with heads.

    Args:
        module: `fastrnn.RNN`, `GRU`, `LSTM`, `Recurrent` or `RecurrentCell`, which is left as it is.

    Raises:
        TypeError: it is something else.
        ValueError: a `weight_hh` is no parameter, but computed from others.

    Example::

        >>> import torch, fastrnn, fastrnn.heads
        >>> gru = fastrnn.GRU(3, 8, num_heads=2)
        >>> alone = fastrnn.heads.dense(gru)
        >>> gru.weight_hh_l0.shape, alone.weight_hh_l0.shape
        (torch.Size([2, 12, 4]), torch.Size([24, 8]))
        >>> x = torch.randn(5, 2, 3)
        >>> torch.allclose(gru(x)[0], alone(x)[0], atol=1e-6)
        True
    """
    if not isinstance(module, Module) or not hasattr(module, "num_heads"):
        raise TypeError(f"dense: module must be one of fastrnn's layers with heads, got {type(module).__name__}")
    copied: Any = deepcopy(module)
    copied.num_heads = 1
    made: dict[Tensor, nn.Parameter] = {}  # layers may share one
    for name in [name for names in copied._names() for name in names if name.startswith("weight_hh")]:
        weight = copied._parameters.get(name)
        if weight is None:
            raise ValueError(f"dense: {name} is not a parameter but computed from others")
        if weight.dim() == 3:
            if weight not in made:
                of_one = dense_weights(weight.detach(), weight.shape[1] // weight.shape[2])
                made[weight] = nn.Parameter(of_one, weight.requires_grad)
            setattr(copied, name, made[weight])
    if isinstance(copied, nn.RNNBase):
        copied.flatten_parameters()  # which does nothing for layers with heads
    return copied  # type: ignore[no-any-return]
