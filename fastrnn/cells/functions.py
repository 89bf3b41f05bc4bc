"""A cell's functions on tensors, where torch has none of that name, or another one by it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _tensors(a: Tensor | float, b: Tensor | float) -> tuple[Tensor, Tensor]:
    """Two operands of which one may be a number."""
    if not isinstance(a, Tensor):
        assert isinstance(b, Tensor)
        return torch.full_like(b, a), b
    return a, b if isinstance(b, Tensor) else torch.full_like(a, b)


def maximum(a: Tensor | float, b: Tensor | float) -> Tensor:
    """The larger one, by elements; where both are equal each gets half of the gradient."""
    return torch.maximum(*_tensors(a, b))


def minimum(a: Tensor | float, b: Tensor | float) -> Tensor:
    """The smaller one, by elements; where both are equal each gets half of the gradient."""
    return torch.minimum(*_tensors(a, b))


def mean(x: Tensor) -> Tensor:
    """The mean over the units, (..., H), for each of them."""
    return x.mean(-1, keepdim=True).expand_as(x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), of large x as well: torch's own takes x for it from 20 on."""
    return -F.logsigmoid(-x)
