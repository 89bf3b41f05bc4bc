"""The examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from contextlib import nullcontext

import pytest

import fastrnn

MODULES = ["fastrnn", *(found.name for found in pkgutil.walk_packages(fastrnn.__path__, "fastrnn."))]
NO_EXAMPLES = ("fastrnn.__main__", "fastrnn._C", "fastrnn._stream")
OTHER_CELLS = (
    "fastrnn.cells.library",
    "fastrnn.cells.normalisation",
    "fastrnn.layer_norm",
    "fastrnn.recurrent",
    "fastrnn.cell_parameters",
    "fastrnn.heads",
    "fastrnn.xlstm",
)
"""Their examples are of many cells, whose kernels are not worth compiling for one each."""


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # as Opacus's hooks do in a first layer
@pytest.mark.parametrize("name", [name for name in MODULES if name not in NO_EXAMPLES])
def test_examples_run_as_written(name: str) -> None:
    if name == "fastrnn.opacus":
        pytest.importorskip("opacus")
    with fastrnn.use_backend("reference") if name.startswith(OTHER_CELLS) else nullcontext():
        failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert any(found.examples for found in finder.find(importlib.import_module("fastrnn.nn")))
