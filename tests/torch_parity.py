"""fastrnn's modules beside their torch.nn namesakes: the same weights, the same calls, results and errors compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn.backends import BACKENDS, OPERATOR_BACKENDS
from tests.devices import why_not
from tests.random_layers import Shape
from tests.selection import exhaustive
from tests.tolerances import DROP_IN, relative_error

TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 6
"""Odd or unequal sizes, so that no two axes can be confused."""

PROJECTED = Shape(projection=2)

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN_TANH": ("RNN", {"nonlinearity": "tanh"}),
    "RNN_RELU": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "LSTM": ("LSTM", {}),
}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN_TANH_CELL": ("RNNCell", {"nonlinearity": "tanh"}),
    "RNN_RELU_CELL": ("RNNCell", {"nonlinearity": "relu"}),
    "GRU_CELL": ("GRUCell", {}),
    "LSTM_CELL": ("LSTMCell", {}),
}
MODULES = LAYERS | CELLS

layers = pytest.mark.parametrize("kind", LAYERS)
cells = pytest.mark.parametrize("kind", CELLS)
modules = pytest.mark.parametrize("kind", MODULES)
lstm_first = pytest.mark.parametrize("name", [*exhaustive("RNN", "GRU"), "LSTM"])
"""The classes of layers where a case takes seconds: the short run has the one with most states, sizes and options."""


def _backend_parameter(name: str, *marks: pytest.MarkDecorator) -> Any:
    """The backend's name, skipped where it cannot run or has no float64, in which modules are compared."""
    reason = why_not(name)
    return pytest.param(name, marks=[pytest.mark.skipif(reason is not None, reason=str(reason)), *marks])


backends = pytest.mark.parametrize("backend", [_backend_parameter(name) for name in BACKENDS])
operator_backends = pytest.mark.parametrize("backend", [_backend_parameter(name) for name in OPERATOR_BACKENDS])
"""Those that take lengths, resets and packed sequences, which `aten` refuses."""
numba_first = pytest.mark.parametrize(
    "backend",
    [_backend_parameter(name, *[pytest.mark.exhaustive] * (name != "numba")) for name in OPERATOR_BACKENDS],
)
"""The same; in the short run the CPU's kernels alone, where the others take ten times as long."""


def skip_unless_projecting(backend: str) -> None:
    """Ends a test of projections where the backend has none."""
    if backend in OPERATOR_BACKENDS and (reason := why_not(backend, PROJECTED)):
        pytest.skip(reason)


def classes(kind: str) -> tuple[type[nn.Module], type[nn.Module], dict[str, Any]]:
    """fastrnn's class, torch's class of the same name, and the keyword arguments that make it this kind."""
    name, options = MODULES[kind]
    return getattr(fastrnn, name), getattr(nn, name), options


def pair(kind: str, *args: Any, backend: str | None = None, **options: Any) -> tuple[nn.Module, nn.Module]:
    """fastrnn's module and torch's with equal weights; sizes INPUT and HIDDEN and float64 unless said otherwise."""
    ours, theirs, kind_options = classes(kind)
    options = {"dtype": torch.float64, **kind_options, **options}
    sizes = args or (INPUT, HIDDEN)
    torch_module = theirs(*sizes, **options)
    our_module = ours(*sizes, backend=backend, **options)
    our_module.load_state_dict(torch_module.state_dict())
    return our_module, torch_module


def has_two_states(kind: str) -> bool:
    return kind.startswith("LSTM")


def random(*shape: int, grad: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=grad)


def initial_state(kind: str, module: nn.Module, batch: int | None = BATCH, grad: bool = False) -> Any:
    """A nonzero hx for `module`: a tensor, for LSTM a pair of tensors; without a batch dimension if batch is None."""
    rows: list[int] = [] if batch is None else [batch]
    if kind in LAYERS:
        rows = [module.num_layers * (2 if module.bidirectional else 1), *rows]
    dtype = next(module.parameters()).dtype
    h = random(*rows, getattr(module, "proj_size", 0) or module.hidden_size, grad=grad, dtype=dtype)
    return (h, random(*rows, module.hidden_size, grad=grad, dtype=dtype)) if has_two_states(kind) else h


def clone(value: Any) -> Any:
    """A deep copy of tensors, tuples and packed sequences; copied tensors are leaves that require grad as theirs do."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, PackedSequence):
        return PackedSequence(clone(value.data), *value[1:])
    return tuple(map(clone, value)) if isinstance(value, tuple) else value


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in a result or an argument, in order; of a packed sequence its data alone."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [tensor for part in value for tensor in tensors(part)] if isinstance(value, (tuple, list)) else []


def gradients(results: Any, wanted: Iterable[Tensor], seed: int = 1, **options: Any) -> list[Tensor | None]:
    """Gradients of a random linear function of all results, the same function for the same shapes."""
    outputs = [tensor for tensor in tensors(results) if tensor.requires_grad]
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in outputs]
    return list(torch.autograd.grad(outputs, list(wanted), cotangents, allow_unused=True, **options))


def assert_close(got: Any, expected: Any, tolerance: float = DROP_IN) -> None:
    """Same structure, shapes, dtypes and values, the last to `tolerance` in relative norm; None only equals None."""
    if not isinstance(expected, Tensor):
        got, expected = _parts(got), _parts(expected)
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                assert_close(a, b, tolerance)
        return
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert relative_error(got, expected) <= tolerance


def _parts(value: Any) -> list[Any]:
    return [value.data] if isinstance(value, PackedSequence) else list(value)


def assert_same_results(ours: nn.Module, theirs: nn.Module, *arguments: Any, tolerance: float = DROP_IN) -> None:
    """Both modules give the same results, and the same gradients for every argument and parameter that wants one."""
    (our_results, our_gradients), (their_results, their_gradients) = (
        _results_and_gradients(module, clone(arguments)) for module in (ours, theirs)
    )
    assert_close(our_results, their_results, tolerance)
    assert_close(our_gradients, their_gradients, tolerance)


def _results_and_gradients(module: nn.Module, arguments: Any) -> tuple[Any, list[Tensor | None]]:
    results = module(*arguments)
    wanted = [tensor for tensor in (*tensors(arguments), *module.parameters()) if tensor.requires_grad]
    return results, gradients(results, wanted) if wanted else []


def error_of(call: Callable[[], Any]) -> Exception:
    """What `call` raises; fails the test if it raises nothing."""
    try:
        call()
    except Exception as error:
        return error
    pytest.fail("no error was raised")


def assert_same_error(ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """Both calls raise the same type with the same message."""
    expected, got = error_of(theirs), error_of(ours)
    assert (type(got), str(got)) == (type(expected), str(expected))
