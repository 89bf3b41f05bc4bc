"""What docs/cells.md shows of commands and of the library; `python -m tests.cells.page` writes it anew."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

from fastrnn.__main__ import main
from fastrnn.cells import Cell, library

PAGE = Path(__file__).parents[2] / "docs" / "cells.md"
_BLOCK = re.compile(r"^```console\n\$ python -m fastrnn (.*)\n(?:(?!```).*\n)*```$", re.MULTILINE)
_TABLE = re.compile(r"^\| cell \|.*\n(?:\|.*\n)*", re.MULTILINE)


def library_table() -> str:
    """The library's cells and what their contracts say, in Markdown."""
    titles = ("cell", "what it is, and whose", "gates of x", "of u", "states", "parameters, inputs", "forward saves")
    rows = [titles, ("---",) * len(titles), *(_row(getattr(library, name)) for name in library.__all__)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(cell: Cell) -> tuple[str, ...]:
    what = str(cell.__doc__).partition("\n")[0].rstrip(".")
    more = [*cell.parameters, *(f"{name}: Step" for name in cell.inputs)]
    columns = (cell.x_gates, cell.u_gates, cell.states, more, cell.saved)
    return f"`{cell.name}`", what, *(", ".join(names) for names in columns)


def with_outputs(text: str) -> str:
    """The page, with what each command prints behind it, and the library's table."""

    def block(found: re.Match[str]) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed):
            assert main(found[1].split()) == 0
        return f"```console\n$ python -m fastrnn {found[1]}\n{printed.getvalue()}```"

    return _BLOCK.sub(block, _TABLE.sub(lambda _: library_table(), text))


if __name__ == "__main__":
    PAGE.write_text(with_outputs(PAGE.read_text()))
