"""Which extension the tests of the `cuda` backend run, and how: a plugin, for the test modules that name it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from fastrnn import extension
from tests.backends import cuda_host
from tests.devices import extension_is_for_gpus

HOST = pytest.param("host", marks=pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing())))
KERNELS = [HOST, *(["cuda"] if extension_is_for_gpus() else [])]
"""Compiled for the CPU by these tests; and those that are installed."""


@pytest.fixture(scope="session")
def host_extension(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    cache = getattr(request.config, "cache", None)  # None under -p no:cacheprovider
    return cuda_host.load(cache.mkdir("fastrnn-host") if cache else tmp_path_factory.mktemp("fastrnn-host"))


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which extension the tests run: the one for the CPU takes the installed one's place."""
    if request.param == "host":
        for_host = request.getfixturevalue("host_extension")
        monkeypatch.setattr(extension, "_load", lambda: for_host)
    name: str = request.param
    return name


@pytest.fixture
def on_the_host(kernels: str) -> None:
    """For tests of what only the extension for the CPU does."""
    if kernels != "host":
        pytest.skip("it is for the host's kernels")


@pytest.fixture
def tf32() -> None:
    """Lets float32 be multiplied as TF32, as torch does by default and these tests do not."""
    torch.backends.cudnn.allow_tf32 = True


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the seed of the schedules."""
    return lambda seed: monkeypatch.setenv("FASTRNN_HOST_SEED", str(seed))
