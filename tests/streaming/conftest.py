"""Each kind of door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.streaming.doors import KINDS, door_class


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class `Door` of each kind."""
    return door_class(kind, tmp_path, monkeypatch)
