"""The kernel that reads weights where torch keeps them, against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastrnn.backends import module, numba, reference
from fastrnn.backends.layer import Layer
from fastrnn.backends.numba import launch, unpacked
from fastrnn.cells import CELLS
from tests.arithmetic import torchs_own
from tests.random_layers import Shape, cast, cotangents, random_layer, rounded
from tests.tolerances import assert_accurate

pytestmark = pytest.mark.skipif(bool(module("numba").ready()), reason="no Numba")

SHAPES = (
    Shape(steps=1, batch=1, inputs=1, hidden=1),
    Shape(steps=1, batch=3, inputs=16, hidden=32),
    Shape(steps=5, batch=2, inputs=17, hidden=15),
    Shape(steps=3, batch=1, inputs=40, hidden=33, bias=False),
    Shape(steps=2, batch=4, inputs=3, hidden=70, reverse=True),
    Shape(steps=2, batch=13, inputs=9, hidden=18),
)


def assert_as_reference(layer: Layer, dtype: torch.dtype) -> None:
    layer = rounded(layer, dtype)
    truth = reference.forward(layer, history=False, gates=False)
    other = torchs_own(layer, dtype, cotangents(layer))
    result = unpacked.forward(cast(layer, dtype))
    named = {"output": (result.states[0], truth.states[0])}
    named |= {f"final[{i}]": pair for i, pair in enumerate(zip(result.finals, truth.finals, strict=True))}
    for name, (got, want) in named.items():
        assert_accurate(name, got, want, other[name])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", unpacked.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(cell: str, dtype: torch.dtype, shape: Shape) -> None:
    assert_as_reference(random_layer(cell, shape), dtype)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_teams_give_the_same_bits(cell: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = cast(random_layer(cell, Shape(steps=4, batch=2, inputs=5, hidden=50)), torch.float32)
    alone = unpacked.forward(layer)
    monkeypatch.setattr(unpacked, "TEAM_PRODUCTS", 0)
    monkeypatch.setattr(launch, "available_threads", lambda: threads)
    unpacked.schedule.cache_clear()
    together = unpacked.forward(layer)
    unpacked.schedule.cache_clear()
    for got, want in zip(together.states + together.finals, alone.states + alone.finals, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("cell", CELLS)
def test_memory_beside_the_weights_is_not_read(cell: str) -> None:
    """Units and inputs beyond whole vectors: what lies there is NaN."""
    layer = cast(random_layer(cell, Shape(steps=2, batch=2, inputs=7, hidden=9)), torch.float32)

    def among_nan(tensor: torch.Tensor) -> torch.Tensor:
        memory = torch.full((tensor.numel() + 64,), torch.nan)
        memory[32:-32] = tensor.reshape(-1)
        return memory[32:-32].view(tensor.shape)

    surrounded = replace(
        layer,
        x=among_nan(layer.x),
        w_ih=[among_nan(w) for w in layer.w_ih],
        w_hh=[among_nan(w) for w in layer.w_hh],
        biases=[among_nan(b) for b in layer.biases],
        states0=[among_nan(s) for s in layer.states0],
    )
    got, want = unpacked.forward(surrounded), unpacked.forward(layer)
    for a, b in zip(got.states + got.finals, want.states + want.finals, strict=True):
        assert torch.equal(a, b)


def test_non_contiguous_arguments() -> None:
    layer = cast(random_layer("lstm", Shape(steps=2, batch=3, inputs=7, hidden=9)), torch.float32)
    strided = replace(
        layer,
        x=layer.x.transpose(0, 1).contiguous().transpose(0, 1),
        w_ih=[w.t().contiguous().t() for w in layer.w_ih],
        states0=[s.repeat(1, 1, 2)[..., : s.shape[-1]] for s in layer.states0],
    )
    for a, b in zip(unpacked.forward(strided).finals, unpacked.forward(layer).finals, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_sequence(cell: str) -> None:
    layer = cast(random_layer(cell, Shape(steps=2, batch=3, inputs=5, hidden=20)), torch.float32)
    x = layer.x.detach().clone()
    x[0, 1] = torch.nan
    clean, dirty = unpacked.forward(layer), unpacked.forward(replace(layer, x=x))
    assert dirty.finals[0][:, 1].isnan().all()
    for before, after in zip(clean.states + clean.finals, dirty.states + dirty.finals, strict=True):
        assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])


def test_which_layers_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def serves(**changed: object) -> bool:
        return unpacked.serves(cast(random_layer("lstm", Shape(**{"steps": 2, "batch": 3} | changed)), torch.float32))  # type: ignore[arg-type]

    assert serves()
    for within in ((16, 1), (4, 8), (1, 32)):
        assert serves(steps=within[0], batch=within[1])
    assert serves(steps=8, batch=1, hidden=257)
    for beyond in ((17, 1), (5, 4), (4, 9), (1, 33), (0, 3), (2, 0)):
        assert not serves(steps=beyond[0], batch=beyond[1])
    assert not serves(steps=9, batch=1, hidden=257)
    for more in ("lengths", "resets"):
        assert not serves(**{more: True})
    assert not serves(directions=2)
    assert not serves(projection=2)
    layer = cast(random_layer("gru", Shape(steps=2, batch=3)), torch.float32)
    assert not unpacked.serves(cast(layer, torch.bfloat16))
    monkeypatch.setattr(unpacked, "forward", lambda layer: "unpacked")
    assert numba.forward(layer, history=False, gates=False) == "unpacked"
    for keep in ({"history": True, "gates": False}, {"history": False, "gates": True}):
        assert numba.forward(layer, **keep) != "unpacked"
