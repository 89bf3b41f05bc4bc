"""The table of what a cell's program becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit import cuda, numba, pytorch, triton


class Emitter(NamedTuple):
    """How cells become one backend's source."""

    file: str
    """what the file is called that holds it"""
    module: Callable[[Sequence[Program], str], str]
    """of programs and what the file says of itself"""

    def text(self, program: Program) -> str:
        """The whole file of one cell."""
        about = f"The cell {program.name}, as `fastrnn.cell` made it from its function; not to be edited."
        return self.module([program], about)


EMITTERS: Mapping[str, Emitter] = {
    "pytorch": Emitter("pytorch.py", pytorch.module),
    "numba": Emitter("numba.py", numba.module),
    "triton": Emitter("triton.py", triton.module),
    "cuda": Emitter("cuda.cuh", cuda.classes),
}
