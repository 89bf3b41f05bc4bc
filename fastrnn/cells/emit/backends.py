"""The table of what a cell's program becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit import pytorch


class Emitter(NamedTuple):
    """How a cell becomes one backend's source."""

    file: str
    """what the file is called that holds it"""
    text: Callable[[Program], str]
    """of the whole file"""


def _about(program: Program) -> str:
    return f"The cell {program.name}, as `fastrnn.cell` made it from its function; not to be edited."


EMITTERS: Mapping[str, Emitter] = {
    "pytorch": Emitter("pytorch.py", lambda program: pytorch.module([program], _about(program))),
}
