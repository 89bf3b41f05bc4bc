"""The table as the package reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fastrnn.backends import cost

ABOUT = ("date", "cpu", "cpu_capability", "cores", "packages")
"""What is told of where it was measured, of `environment.describe`."""


def write(path: Path, where: Mapping[str, Any], table: Mapping[str, Sequence[float]]) -> None:
    """Writes it, a line for each row."""
    about = {name: where[name] for name in ABOUT if name in where}
    lines = [f"  {json.dumps(name)}: [{', '.join(f'{one:.3g}' for one in row)}]" for name, row in sorted(table.items())]
    rows = ",\n".join(lines)
    path.write_text(
        f'{{"machine": {json.dumps(about)},\n"terms": {json.dumps(cost.TERMS)},\n"seconds": {{\n{rows}\n}}}}\n'
    )


def predicted(table: Mapping[str, Sequence[float]], sizes: cost.Sizes) -> dict[str, float]:
    """As `cost.predicted`, by this table."""
    with patch.object(cost, "TABLE", table):
        return cost.predicted(sizes)
