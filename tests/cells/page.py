"""What docs/cells.md shows of commands; `python -m tests.cells.page` writes it anew."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

from fastrnn.__main__ import main

PAGE = Path(__file__).parents[2] / "docs" / "cells.md"
_BLOCK = re.compile(r"^```console\n\$ python -m fastrnn (.*)\n(?:(?!```).*\n)*```$", re.MULTILINE)


def with_outputs(text: str) -> str:
    """The page, with what each command prints behind it."""

    def block(found: re.Match[str]) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed):
            assert main(found[1].split()) == 0
        return f"```console\n$ python -m fastrnn {found[1]}\n{printed.getvalue()}```"

    return _BLOCK.sub(block, text)


if __name__ == "__main__":
    PAGE.write_text(with_outputs(PAGE.read_text()))
