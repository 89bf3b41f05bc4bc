"""What a user finds in `fastrnn`: by attribute, in `dir`, and in `help`."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import fastrnn


def test_modules_are_there_once_they_are_asked_for() -> None:
    """And none of the packages that they serve, nor they themselves, before."""
    program = """
import sys, fastrnn
assert not {"fastrnn.keras", "fastrnn.onnx"} & set(sys.modules) and {"keras", "onnx", "probe"} <= set(dir(fastrnn))
fastrnn.keras.from_keras, fastrnn.onnx.export
print([name for name in ("onnx", "onnxscript", "onnx_ir", "torch.onnx", "keras", "numba") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_no_name_hides_a_module() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(fastrnn.__path__)}
    for name in submodules & set(dir(fastrnn)):
        assert isinstance(getattr(fastrnn, name), ModuleType), name
    assert isinstance(fastrnn.probing.Record, type)


def test_other_names_are_errors() -> None:
    with pytest.raises(AttributeError, match=r"^module 'fastrnn' has no attribute 'nothing'$"):
        fastrnn.nothing  # noqa: B018
