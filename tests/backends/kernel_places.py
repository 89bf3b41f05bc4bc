"""Places for kernels in tests: users, directories that all can reach, and what an environment makes of them.

PYTEST_DONT_REWRITE: modules import this before they name it as a plugin.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastrnn import trust
from fastrnn.backends.numba import kernel_files
from fastrnn.backends.numba.kernel_files import Places

OTHER = 65534
THIRD = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
CONTEXT = SimpleNamespace(refresh=lambda: None)
"""In the place of Numba's."""
FILE = f"pack_float32.py{sys.version_info[0]}{sys.version_info[1]}"


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Places]:
    """What holds from now on, with these variables, and no temporary files if none are said."""
    for name in ("FASTRNN_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "FASTRNN_TRUST_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(trust, "everybody", trust.everybody.__wrapped__)
    (tmp_path / "no directory").touch()

    def find(temporary: Path = tmp_path / "no directory", **variables: str | Path) -> Places:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        found: Places = kernel_files.places.__wrapped__()
        monkeypatch.setattr(kernel_files, "places", lambda: found)
        return found

    return find


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def name() -> str:
    return f"kernels-{kernel_files._fingerprint()}"
