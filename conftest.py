"""How many processes share the tests, as pytest-xdist asks, and which run. What they share is in tests/conftest.py."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["tests.selection"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One for each core where all tests run; none but pytest's own for a few that were named, and beside a GPU."""
    import torch  # not before tests/conftest.py says how many threads it starts

    named = config.args_source != pytest.Config.ArgsSource.TESTPATHS
    return 0 if named or torch.cuda.is_available() else len(os.sched_getaffinity(0))
