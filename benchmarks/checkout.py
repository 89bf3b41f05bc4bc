"""Where this checkout is, and how processes that it starts find it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def variables_of_children() -> dict[str, str]:
    """The environment variables of a process that is to import this package."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
