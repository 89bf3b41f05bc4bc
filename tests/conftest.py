"""What every test shares: a fixed seed, the backend's device, and no compiled graph left over from the test before."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Layers are so small that a second thread costs more than it gives, on a busy machine many times more: in this process
# and in those that tests start. Before torch and numpy, which read it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms ask of cuBLAS

from fastrnn.backends.numba import compile
from fastrnn.backends.triton.interpreter import INTERPRETED  # after TRITON_INTERPRET, which it reads
from fastrnn.binding import bind
from fastrnn.cells import files
from tests.backends.triton_interpreter import patch_once
from tests.devices import device_of, on_gpu, without_cudnn

if INTERPRETED and find_spec("triton"):
    patch_once()


def _only_where_asked(place: Callable[[], Path | None]) -> Callable[[], Path | None]:
    """Tests define cells by the hundred, whose files would stay in the user's cache: those have none."""
    return lambda: place() if "FASTRNN_CACHE_DIR" in os.environ else None


files.base, files.fallback = _only_where_asked(files.base), _only_where_asked(files.fallback)


def pytest_configure(config: pytest.Config) -> None:
    """Beside a GPU, warnings are told in the summary and are no errors: what torch says there depends on the machine.

    What tests assert about warnings stays; so do the filters that follow `error` in pyproject.toml.
    """
    filters = config.getini("filterwarnings")
    if torch.cuda.is_available() and "error" in filters:
        filters[filters.index("error")] = "default"


@pytest.hookimpl(tryfirst=True)  # before pytest looks which items -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what computes on a GPU, where there is one: `pytest -m gpu` is what such a machine is needed for."""
    for item in items:
        call = getattr(item, "callspec", None)
        if call and on_gpu(call.params):
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def _device_of_the_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests with a backend for GPUs as a parameter create their tensors there."""
    call = getattr(request.node, "callspec", None)
    device = device_of(*(value for value in call.params.values() if isinstance(value, str))) if call else "cpu"
    if device is None:
        pytest.skip("no device serves both backends")
    # Not for the CPU: a mode that sees every call would take layers around their shorter ways.
    with torch.device(device) if device != "cpu" else nullcontext():
        yield


@pytest.fixture
def cudnn() -> None:
    """For tests on a GPU that are about cuDNN or measure by it; all others have torch compute without it."""


@pytest.fixture(autouse=True)
def _torch_without_cudnn(request: pytest.FixtureRequest) -> Iterator[None]:
    """What torch computes beside fastrnn on a GPU is what it computes beside it on the CPU: see `without_cudnn`.

    Not for the backends that are cuDNN there.
    """
    call = getattr(request.node, "callspec", None)
    parameters = call.params if call else {}
    asked = "cudnn" in request.fixturenames or not {"auto", "aten"}.isdisjoint(
        value for value in parameters.values() if isinstance(value, str)
    )
    with without_cudnn() if on_gpu(parameters) and not asked else nullcontext():
        yield


@pytest.fixture(scope="session", autouse=True)
def _kernels_are_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of the processes that share the tests one compiles a kernel of the CPU's, and the others find it on disk."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    place, build = tmp_path_factory.getbasetemp().parent, compile._build

    def in_turn(*key: Any) -> Any:
        with (place / f"{'-'.join(map(str, key))}.lock").open("w") as lock:  # one each: a kernel may ask for another
            fcntl.flock(lock, fcntl.LOCK_EX)
            return build(*key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile, "_build", in_turn)
        yield


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    """float32 is multiplied as float32: what TF32 does is for the tests that ask for it."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory is NaN, so that an element that nobody writes shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def usual_way(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each call of a module that was bound, checks and all: see `fastrnn.binding`."""
    calls: list[str] = []
    usual = bind.bind

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append("bound")
        return usual(*arguments, **options)

    monkeypatch.setattr(bind, "bind", counted)
    return calls
