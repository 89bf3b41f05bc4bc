"""The CUDA kernels with cells that are not built in, on the CPU."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from fastrnn import extension
from fastrnn.cells import CELLS
from tests.backends import cuda_host
from tests.backends.cuda_results import assert_as_reference, assert_as_tf32
from tests.cells.zoo import ZOO
from tests.random_layers import Shape, random_layer

pytest_plugins = ["tests.backends.cuda_fixtures"]
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing())),
    pytest.mark.usefixtures("poisoned_memory", "tf32"),
]

OTHERS = ("cifg", "mgu")
"""Three gates and saved values, an odd number of them to a 16-bit pair; and two gates of which one adds its shares."""
SHAPES = (
    Shape(steps=4, batch=9, hidden=40, directions=2, lengths=True, resets=True),
    Shape(hidden=12, heads=2, bias=False),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """An extension of these cells alone."""
    folder = tmp_path_factory.mktemp("cells")
    programs = [replace(program, name=ZOO[name].key) for name in OTHERS if (program := ZOO[name].program)]
    sources = cuda_host.with_cells(programs, folder)
    setup: Any = cuda_host.setup_module()
    setup.CELLS_FILE = sources / "cells.h"
    setup.compile_and_link_for_host(setup.find_sources(sources), setup.find_cxx(), folder / "objects", folder / "_C.so")
    return cuda_host.imported("fastrnn_cells._C", folder / "_C.so")


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("way", ["block", "grid"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_kernels_serve_other_cells(
    name: str, shape: Shape, way: str, recompute: bool, built: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRNN_CUDA_WAY", way)
    monkeypatch.setattr(extension, "_load", lambda: built)
    key = ZOO[name].key
    monkeypatch.setitem(CELLS, key, ZOO[name])
    layer = random_layer(key, shape)
    assert_as_reference(layer, torch.bfloat16, recompute)
    assert_as_tf32(layer, recompute)
