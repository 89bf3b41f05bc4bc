"""How results of the `cuda` backend are judged."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastrnn.backends.layer import Layer
from tests.arithmetic import Cotangents, judged, randomly_rounded, yardsticks
from tests.random_layers import compute, cotangents, rounded
from tests.tolerances import DRAWS, FACTOR, FLOOR, TF32_EPSILON

SEEDS = range(1, 21)
"""Of schedules."""


def in_dtype(layer: Layer, dtype: torch.dtype) -> Layer:
    return layer.with_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


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
    grads = cotangents_in(layer, dtype)
    assert_judged(layer, dtype, grads, yardsticks(layer, dtype, grads, "cuda"), recompute)


def assert_as_tf32(layer: Layer, recompute: bool = False) -> None:
    """Beside the reference with errors of TF32's size wherever a kernel rounds."""
    layer = rounded(layer, torch.float32)
    grads = cotangents_in(layer, torch.float32)
    others = [randomly_rounded(layer, TF32_EPSILON["cuda"], grads) for _ in range(DRAWS)]
    assert_judged(layer, torch.float32, grads, others, recompute)


def cotangents_in(layer: Layer, dtype: torch.dtype) -> Cotangents:
    """In float64, of values that `dtype` can hold."""
    histories, finals = cotangents(layer)
    return [d.to(dtype).double() for d in histories], [d.to(dtype).double() for d in finals]


def assert_judged(
    layer: Layer, dtype: torch.dtype, grads: Cotangents, others: list[dict[str, torch.Tensor]], recompute: bool
) -> None:
    """The `cuda` backend's results are about as near to the truth as the worst of `others`."""
    results = compute(layer, dtype, "cuda", grads, recompute)
    for name, (error, measure) in judged(layer, grads, results, others).items():
        assert results[name].dtype == dtype, name
        assert error <= FACTOR * measure + FLOOR[dtype], name
