"""The code of users' cells as files, which debuggers, profilers and tracebacks show, and which can be imported.

Each cell has a folder, named by the cell and a hash of what it is and of the compiler's sources. Files are only ever
written: what runs is the text that was just made, compiled as if it came from its file. So nothing there needs to be
trusted, and a cell that was edited, or another process, cannot put other code in its place.
"""

from __future__ import annotations

import hashlib
import linecache
from functools import cache
from pathlib import Path
from types import CodeType

from fastrnn import trust
from fastrnn.cache import base, fallback, write
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.backends import EMITTERS

NAME_LENGTH = 16
"""digits of the hash that a folder is named by"""


def code(program: Program, backend: str, *, kept: bool) -> CodeType:
    """The cell's module for a backend whose language is Python; with `kept` its file is there for the user."""
    whole = EMITTERS["pytorch"].text(program)  # which says all that there is of a cell
    text = whole if backend == "pytorch" else EMITTERS[backend].text(program)
    name = f"{program.name}-{hashlib.sha256(_compiler() + whole.encode()).hexdigest()[:NAME_LENGTH]}"
    path = _written(name, EMITTERS[backend].file, text) if kept else None
    if path is None:
        file = f"<fastrnn cell {name}, {backend}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    else:
        file = str(path)
    return compile(text, file, "exec")


def _written(name: str, file: str, text: str) -> Path | None:
    """The file with this text, which is written unless it is there; None where no file can be."""
    for directory in (base(), fallback()):
        if directory is None:
            continue
        try:
            path = trust.directory(directory.expanduser() / "cells" / name, make=True) / file
            content = text.encode()
            if not path.is_file() or path.read_bytes() != content:
                write(path, content)
            return path
        except (OSError, RuntimeError, UnicodeError):  # no home directory; the cell's name is none of a file here
            pass
    return None


@cache
def _compiler() -> bytes:
    """A hash of the compiler's sources, if it is installed with them."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.digest()
