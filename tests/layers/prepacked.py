"""What tests of weights that are laid out once share."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn

T, B, I, H = 5, 4, 6, 20
KINDS = ("RNN", "GRU", "LSTM")


def pair(kind: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A module that is not prepacked, and one with equal parameters that is."""
    plain = getattr(fastrnn, kind)(I, H, backend="numba", **options)
    return plain, copy.deepcopy(plain).prepack()


def flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [tensor for result in results for tensor in flat(result)]


def repeat(net: nn.Module, *arguments: Any) -> list[Tensor]:
    """The results of a call that comes after others like it."""
    with torch.no_grad():
        for _ in range(3):
            results = net(*arguments)
    return flat(results)


def all_at_once(net: nn.Module, inputs: list[Tensor], expected: list[list[Tensor]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        for results, wanted in zip(pool.map(lambda x: repeat(net, x), inputs), expected, strict=True):
            assert all(map(torch.equal, results, wanted))
