"""The programs of examples/advanced as modules. (Those of examples/ are read from top to bottom: test_gallery.py.)"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from benchmarks.checkout import ROOT

FOLDER = ROOT / "examples" / "advanced"
PICTURE_BYTES = 100_000
"""which no picture of the documentation has"""


def load_script(path: Path) -> Any:
    """The program, not run as the main one. It finds its neighbours, which then are in `sys.modules` by their names."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
