"""What every test shares: a fixed seed, a device for each backend, and no compiled graph left from the test before.

Triton's kernels run on a GPU where there is one, and otherwise on the CPU by Triton's interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms ask of cuBLAS

from fastrnn.backends.triton.interpreter import INTERPRETED  # after TRITON_INTERPRET, which it reads


@pytest.fixture(autouse=True)
def _device_of_the_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests with a backend for GPUs as a parameter create their tensors there."""
    parameters = getattr(request.node, "callspec", None)
    names = {value for value in parameters.params.values() if isinstance(value, str)} if parameters else set()
    if "triton" not in names or INTERPRETED:
        yield
        return
    if "numba" in names:
        pytest.skip("no device serves both backends")
    with torch.device("cuda"):
        yield


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


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
