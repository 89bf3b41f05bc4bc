"""What the tests of torch.func's transforms share: modules, their losses, and which kernels a function reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_flatten

import fastrnn
from fastrnn.backends import module
from tests.tolerances import DROP_IN

INPUT, HIDDEN, STEPS, BATCH, MEMBERS = 3, 4, 5, 2, 3
"""Of a module's call, and how many of them vmap maps over."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "LSTM": ("LSTM", {"batch_first": True}),
    "projected": ("LSTM", {"proj_size": 2, "bidirectional": True}),
}
cases = pytest.mark.parametrize("case", CASES)
needs_numba = pytest.mark.skipif(bool(module("numba").ready()), reason="no Numba")


def make(case: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    name, of_case = CASES[case]
    return getattr(fastrnn, name)(INPUT, HIDDEN, dtype=dtype, **{**of_case, **options})


def values(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's parameters, without autograd's part in them."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def sequences(module: Any, *more: int) -> Tensor:
    """Input (T, B, I), or (B, T, I), with further dimensions in front."""
    sizes = (BATCH, STEPS) if module.batch_first else (STEPS, BATCH)
    return torch.randn(*more, *sizes, INPUT, dtype=next(module.parameters()).dtype)


def states(module: Any, *more: int) -> Any:
    """An hx, with further dimensions in front."""
    rows = module.num_layers * (1 + module.bidirectional)
    h = torch.randn(*more, rows, BATCH, getattr(module, "proj_size", 0) or HIDDEN, dtype=torch.float64)
    return (h, torch.randn(*more, rows, BATCH, HIDDEN, dtype=torch.float64)) if module.mode == "LSTM" else h


def masks(module: Any, *more: int) -> tuple[Tensor, Tensor]:
    """lengths and resets, with further dimensions in front."""
    resets = torch.rand(sequences(module, *more).shape[:-1]) < 0.3
    return torch.randint(0, STEPS + 1, (*more, BATCH)), resets


def loss(
    module: Any, parameters: dict[str, Tensor], x: Tensor, hx: Any = None, lengths: Any = None, resets: Any = None
) -> Tensor:
    """A number that depends on every step and state, each in a way of its own."""
    results = functional_call(module, parameters, (x, hx), {"lengths": lengths, "resets": resets})
    flat, _ = tree_flatten(results)
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) for y in flat]
    return sum(((y * w).sum() + y.square().sum() for y, w in zip(flat, weights, strict=True)), torch.zeros(()))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the calls of Numba's kernels through the operators: "forward" and "backward"."""
    backend, calls = module("numba"), Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("forward", "backward"):
            usual = getattr(backend, name)

            def kernel(*arguments: Any, name: str = name, usual: Any = usual, **options: Any) -> Any:
                calls[name] += 1
                return usual(*arguments, **options)

            patch.setattr(backend, name, kernel)
        yield calls


def assert_same(got: Any, expected: Any) -> None:
    """Equal structures, and equal values but for rounding."""
    (got_leaves, got_form), (leaves, form) = tree_flatten(got), tree_flatten(expected)
    assert got_form == form
    for one, other in zip(got_leaves, leaves, strict=True):
        torch.testing.assert_close(one, other, rtol=DROP_IN, atol=DROP_IN)


def assert_by_kernels(function: Callable[[], Any], forward: int, backward: int = 0) -> None:
    """`function` gives by so many kernels what it gives by the reference."""
    with fastrnn.use_backend("reference"), counted() as calls:
        expected = function()
    assert not calls
    with fastrnn.use_backend("numba"), counted() as calls:
        got = function()
    assert_same(got, expected)
    assert (calls["forward"], calls["backward"]) == (forward, backward)
