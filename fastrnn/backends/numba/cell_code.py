"""The functions of any cell for kernels: a built-in one's, which were written beforehand, or those of its program."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from fastrnn.cells import files
from fastrnn.cells.contract import KEY_LENGTH
from fastrnn.cells.emit.backends import EMITTERS
from fastrnn.cells.known import KNOWN

if TYPE_CHECKING:
    from fastrnn.backends.numba.kernels.cell_kernel import CellKernel

NAME_LENGTH = 32
"""The most letters of a cell's name in the names of files."""
DIGEST_LENGTH = 16
"""digits of the hash of the text from which the functions are compiled"""


class CellCode(NamedTuple):
    """A cell's functions, and what their kernels are called."""

    kernel: CellKernel
    file: str
    """the beginning of the names of files and of symbols: no other cell's, and no other text's"""
    title: str
    """in messages"""


@cache
def cell_code(name: str) -> CellCode:
    """Of the cell with this name in `KNOWN`."""
    from fastrnn.backends.numba.kernels import cells

    cell = KNOWN[name]
    if cell.program is None:
        return CellCode(cells.CELL_KERNELS[name], name, name.replace("_", " "))
    text = EMITTERS["numba"].text(cell.program)
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
    letters = re.sub(r"\W", "_", cell.name, flags=re.ASCII)[:NAME_LENGTH]
    file = f"{letters}_{cell.key[-KEY_LENGTH:]}_{digest}"
    # Of a module that there is: a kernel on disk has its name, and Numba imports it where it loads the kernel.
    namespace: dict[str, Any] = {"__name__": cells.__name__}
    exec(files.code(cell.program, "numba", kept=False), namespace)
    kernel: CellKernel = namespace["CELL_KERNELS"][cell.name]
    for function in (kernel.step, kernel.derivative):  # these names become symbols
        function.py_func.__qualname__ = f"{file}.{function.py_func.__qualname__}"
    return CellCode(kernel, file, cell.name)
