"""Writes the built-in cells' code: python -m fastrnn.cells.generate, in a checkout's root.

With --check nothing is written: the status is 1 where a file is not what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit import cuda, numba, pytorch, triton

ABOUT = "Written by `python -m fastrnn.cells.generate` from the functions in fastrnn/cells; not to be edited."


def programs() -> list[Program]:
    """Of the built-in cells."""
    from fastrnn.cells.gru import gru
    from fastrnn.cells.lstm import lstm
    from fastrnn.cells.rnn import rnn_relu, rnn_tanh

    return [cell.program for cell in (rnn_tanh, rnn_relu, lstm, gru) if cell.program is not None]


def files() -> dict[str, str]:
    """What is generated, by its place in a checkout."""
    cells = programs()
    return {
        "fastrnn/cells/built_in.py": pytorch.module(cells, ABOUT),
        "fastrnn/backends/numba/kernels/cells.py": numba.module(cells, ABOUT),
        "fastrnn/backends/triton/kernels/cells.py": triton.module(cells, ABOUT),
        "csrc/cells.h": cuda.names(cells, ABOUT),
        "csrc/cells.cuh": cuda.classes(cells, ABOUT),
    }


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    texts = {Path(place): text for place, text in files().items()}
    missing = [path for path in texts if not path.parent.is_dir()]
    if missing:
        print(f"there is no {missing[0].parent} here: run it in a checkout's root", file=sys.stderr)
        return 2
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path}")
        if not check:
            path.write_text(texts[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
