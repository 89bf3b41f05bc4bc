"""How results of the `cuda` backend are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fastrnn.backends.layer import Layer
from tests.arithmetic import randomly_rounded, yardsticks
from tests.layers import compute, cotangents, rounded
from tests.tolerances import DRAWS, FACTOR, FLOOR, assert_accurate, relative_error

SEEDS = range(1, 21)
"""Of schedules."""
TF32_EPSILON = 2.0**-10
"""Of a float32 rounded to 10 bits."""


def in_dtype(layer: Layer, dtype: torch.dtype) -> Layer:
    def cast(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.to(dtype) for tensor in tensors]

    return replace(
        layer,
        x=layer.x.to(dtype),
        w_ih=cast(layer.w_ih),
        w_hh=cast(layer.w_hh),
        biases=cast(layer.biases),
        states0=cast(layer.states0),
    )


def assert_schedules_agree(layer: Layer, dtype: torch.dtype, seeded: Callable[[int], None]) -> None:
    """All results have the same bits under every seed of `SEEDS`, which `seeded` sets."""
    grads = cotangents(layer)
    first: dict[str, torch.Tensor] = {}
    for seed in SEEDS:
        seeded(seed)
        result = compute(layer, dtype, "cuda", grads)
        first = first or result
        assert all(torch.equal(first[name], result[name]) for name in first), seed


def assert_as_reference(layer: Layer, dtype: torch.dtype, recompute: bool = False) -> None:
    """In 16 bits."""
    layer = rounded(layer, dtype)
    grads = tuple([d.to(dtype).double() for d in group] for group in cotangents(layer))
    truth = compute(layer, torch.float64, "reference", grads)
    others = yardsticks(layer, dtype, grads, "cuda")
    for name, result in compute(layer, dtype, "cuda", grads, recompute).items():
        assert_accurate(name, result, truth[name], *(other[name] for other in others))


def assert_as_tf32(layer: Layer, recompute: bool = False) -> None:
    """Beside the reference with errors of TF32's size wherever a kernel rounds."""
    layer = rounded(layer, torch.float32)
    grads = tuple([d.float().double() for d in group] for group in cotangents(layer))
    truth = compute(layer, torch.float64, "reference", grads)
    others = [randomly_rounded(layer, TF32_EPSILON, grads) for _ in range(DRAWS)]
    for name, result in compute(layer, torch.float32, "cuda", grads, recompute).items():
        allowed = FACTOR * max(relative_error(other[name], truth[name]) for other in others)
        assert relative_error(result, truth[name]) <= allowed + FLOOR[torch.float32], name
