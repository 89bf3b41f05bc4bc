"""The CUDA extension's kernels, compiled for the CPU from this checkout: what tests of the `cuda` backend run there."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

from benchmarks.checkout import ROOT
from fastrnn.cells import Cell
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit import cuda

SOURCES = ROOT / "csrc"
ELEMENTS = ("Bfloat16", "Float16", "Tf32")
"""The classes of csrc/elements.cuh that kernels are compiled for."""
WAYS = ("block", "cluster", "grid")
"""How a layer may be computed, as FASTRNN_CUDA_WAY names it."""
FEW_UNITS = (64, 256)
"""Of cluster kernels: what one block and a cluster are asked for."""
NAME = "fastrnn_host._C"
"""Not that of the installed extension: pybind11 would give back the one that it has under this name."""


def setup_module() -> ModuleType:
    """setup.py as a module."""
    return imported("fastrnn_setup", ROOT / "setup.py")


def imported(name: str, path: Path) -> ModuleType:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_cells(programs: Sequence[Program], folder: Path) -> Path:
    """A copy of the sources in a folder, of these cells in place of the built-in ones."""
    copy = folder / "csrc"
    shutil.copytree(SOURCES, copy)
    (copy / "cells.h").write_text(cuda.names(programs, "A test's."))
    (copy / "cells.cuh").write_text(cuda.classes(programs, "A test's."))
    return copy


def narrow(sources: Path, elements: Sequence[str], units: Sequence[int]) -> None:
    """Leaves of a copy's kernels those of some of `ELEMENTS`, and of cluster kernels those for so many units."""
    for source in sources.glob("*/*.cu"):
        left_out = [f"<Cell, {element}>(table" for element in ELEMENTS if element not in elements]
        lines = source.read_text().splitlines()
        source.write_text("\n".join(line for line in lines if not any(text in line for text in left_out)))

    def kept(shapes: re.Match[str]) -> str:
        return f"Shapes<{', '.join(one for one in re.findall(r'Shape<[^>]*>', shapes[1]) if _units(one) in units)}>"

    shapes = sources / "cluster/shapes.cuh"
    shapes.write_text(re.sub(r"Shapes<((?:\s*Shape<[\d, ]+>,?)+)>", kept, shapes.read_text()))


def _units(shape: str) -> int:
    return int(re.findall(r"\d+", shape)[0])


def of_cell(cell: Cell, folder: Path, elements: Sequence[str]) -> ModuleType:
    """An extension of this cell alone, of some of `ELEMENTS` and of `FEW_UNITS`, built in a folder."""
    assert cell.program is not None
    sources = with_cells([replace(cell.program, name=cell.key)], folder)
    narrow(sources, elements, FEW_UNITS)
    setup = setup_module()
    setup.CELLS_FILE = sources / "cells.h"
    setup.compile_and_link_for_host(setup.find_sources(sources), setup.find_cxx(), folder / "objects", folder / "_C.so")
    return imported(f"{cell.key}._C", folder / "_C.so")  # pybind11 keeps modules by their names


@cache
def missing() -> str | None:
    """Why nothing can be compiled for the CPU here, or None."""
    for name in ("setuptools", "pybind11"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    if not SOURCES.is_dir():
        return f"there is no {SOURCES}"
    before = os.environ.get("FASTRNN_CUDA")
    os.environ["FASTRNN_CUDA"] = "host"
    module = setup_module()
    try:
        module.find_compiler()
    except module.NotBuilt as reason:
        return str(reason)
    finally:
        if before is None:
            del os.environ["FASTRNN_CUDA"]
        else:
            os.environ["FASTRNN_CUDA"] = before
    return None


def load(cache_folder: Path) -> ModuleType:
    """The extension, built into `cache_folder` unless it is there already, of the same sources."""
    import fcntl  # not everywhere, nor is what `missing` looks for

    built = cache_folder / f"_C-{hash_of_sources()}.so"
    with (cache_folder / "lock").open("w") as lock:  # of two processes one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _build(cache_folder, built)
    return imported(NAME, built)


def hash_of_sources() -> str:
    """Of the sources, of what compiles them and of the Python that loads the result."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(path for path in (*SOURCES.rglob("*"), ROOT / "setup.py") if path.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _build(folder: Path, built: Path) -> None:
    """By setup.py's own code. What other sources gave is removed."""
    setup = setup_module()
    for old in folder.glob("_C-*.so"):
        old.unlink()
    before, objects = Path.cwd(), folder / "objects"
    os.chdir(ROOT)  # setup.py's paths begin there
    try:
        partial = built.with_suffix(".partial")
        setup.compile_and_link_for_host(setup.find_sources(Path("csrc")), setup.find_cxx(), objects, partial)
        partial.rename(built)
    finally:
        os.chdir(before)
        shutil.rmtree(objects, ignore_errors=True)
