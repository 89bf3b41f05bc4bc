"""Writes the built-in cells' code: python -m fastrnn.cells.generate, in a checkout.

With --check nothing is written: the status is 1 where a file is not what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit import cuda, numba, pytorch, triton

ROOT = Path(__file__).parents[2]
ABOUT = "Written by `python -m fastrnn.cells.generate` from the functions in fastrnn/cells; not to be edited."


def programs() -> list[Program]:
    """Of the built-in cells."""
    from fastrnn.cells.gru import gru
    from fastrnn.cells.lstm import lstm
    from fastrnn.cells.rnn import rnn_relu, rnn_tanh

    return [cell.program for cell in (rnn_tanh, rnn_relu, lstm, gru) if cell.program is not None]


def files() -> dict[Path, str]:
    """What is generated, by its place."""
    cells = programs()
    return {
        ROOT / "fastrnn/cells/built_in.py": pytorch.module(cells, ABOUT),
        ROOT / "csrc/cells.h": cuda.names(cells, ABOUT),
        ROOT / "csrc/cells.cuh": cuda.classes(cells, ABOUT),
        ROOT / "fastrnn/backends/numba/kernels/cells.py": numba.module(cells, ABOUT),
        ROOT / "fastrnn/backends/triton/kernels/cells.py": triton.module(cells, ABOUT),
    }


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(files()[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
