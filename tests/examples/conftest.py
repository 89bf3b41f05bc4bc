"""What tests of several programs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.cost.race import threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that a second thread costs more than it gives, many times more on a busy machine."""
    with threads(1):
        yield
