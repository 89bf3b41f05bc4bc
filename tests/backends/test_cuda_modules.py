"""Modules whose layers the CUDA kernels compute, in 16 bits and in float32 as TF32, beside the same in float64.

As in `test_cuda_host.py`, the kernels run on the CPU, and on a GPU where there is one.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn.backends import CannotServe
from tests.arithmetic import random_errors, random_roundings
from tests.layers import test_module_values, test_packing
from tests.tolerances import DRAWS, FACTOR, FLOOR, TF32_EPSILON, relative_error
from tests.torch_parity import BATCH, CELLS, LAYERS, TIME, classes, has_two_states, initial_state, random, tensors

pytest_plugins = ["tests.backends.cuda_fixtures"]
pytestmark = pytest.mark.usefixtures("poisoned_memory", "kernels", "tf32")

INPUT, HIDDEN = 5, 19
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STACK = test_module_values.STACKS["everything"]
LENGTHS = [4, 0, 5]
ATTEMPTS = {"RNN_RELU": 3}
"""Sets of random numbers of which one must do: whether a rounding takes one of some thousand activations across a
relu's kink, where its derivative jumps, is chance. A fault is in all of them."""


class Case(NamedTuple):
    """A module's options, and how it is called."""

    options: dict[str, Any]
    hx: bool = True
    batch: int | None = BATCH
    steps: int = TIME
    packed: list[int] | None = None
    lengths: bool = False
    resets: bool = False
    recompute: bool = False


CASES = {
    **{name: Case(options) for name, options in test_module_values.STACKS.items()},
    "no hx": Case(STACK, hx=False),
    "dropout of nothing": Case({"num_layers": 2, "dropout": 0.0}),
    "unbatched": Case(STACK, batch=None, resets=True),
    "one of each": Case({"bidirectional": True}, batch=1, steps=1),
    "no sequence": Case({}, batch=0),
    "packed": Case(test_packing.STACKS["everything"], packed=[2, 5, 3]),
    "packed and sorted": Case({"bidirectional": True}, packed=test_packing.LENGTHS["descending"], resets=True),
    "lengths": Case(STACK, lengths=True),
    "resets": Case(STACK, resets=True),
    "lengths and resets": Case({"bidirectional": True}, lengths=True, resets=True),
    "recompute": Case(STACK, lengths=True, resets=True, recompute=True),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
layers = pytest.mark.parametrize("kind", LAYERS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Given(NamedTuple):
    """What a module is called with."""

    arguments: tuple[Any, ...]
    masks: dict[str, Tensor]


def layer_of(kind: str, case: Case, dtype: torch.dtype) -> nn.Module:
    """Of float64 parameters that `dtype` can hold."""
    made, _, options = classes(kind)
    module = made(INPUT, HIDDEN, dtype=dtype, **options, **case.options).double()
    if case.recompute:
        module.recompute = True
    return module


def given_to(kind: str, module: Any, case: Case, dtype: torch.dtype) -> Given:
    """In float64; x is NaN beyond its lengths, where nothing may read it."""
    rows = [case.steps] if case.batch is None else [case.steps, case.batch]
    if module.batch_first:
        rows.reverse()
    x = random(*rows, INPUT)
    masks = {}
    if case.lengths:
        masks["lengths"] = torch.tensor(LENGTHS)
        x[test_packing.beyond_lengths(LENGTHS, module.batch_first)] = float("nan")
    if case.resets:
        masks["resets"] = torch.rand(rows) < 0.3
    sequence = x if case.packed is None else test_packing.packed(x, case.packed, module.batch_first)
    arguments = (sequence, initial_state(kind, module, case.batch)) if case.hx else (sequence,)
    return Given(cast(arguments, dtype), masks)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Copies in another dtype, leaves that require gradients."""
    if isinstance(value, Tensor):
        return value.detach().to(dtype, copy=True).requires_grad_()
    if isinstance(value, PackedSequence):
        return PackedSequence(cast(value.data, dtype), *value[1:])
    return tuple(cast(part, dtype) for part in value)


def results(module: nn.Module, given: Given, storage: torch.dtype, dtype: torch.dtype, backend: str | None) -> Any:
    """The outputs and every gradient by name, computed in `dtype`, from gradients that `storage` can hold."""
    module, arguments = copy.deepcopy(module).to(dtype), cast(given.arguments, dtype)
    module.backend = backend
    outputs = tensors(module(*arguments, **given.masks))
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    d = [torch.randn(y.shape, generator=generator, dtype=torch.float64, device=y.device) for y in outputs]
    leaves = {f"argument {i}": leaf for i, leaf in enumerate(tensors(arguments))} | dict(module.named_parameters())
    grads = torch.autograd.grad(outputs, [*leaves.values()], [each.to(storage).to(dtype) for each in d])
    named = {f"output {i}": output for i, output in enumerate(outputs)}
    return named | {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def assert_right(module: nn.Module, given: Given, dtype: torch.dtype) -> None:
    """As `tests/tolerances.py` says, but each yardstick is computed only where those before it are too short."""
    truth = results(module, given, dtype, torch.float64, "reference")
    got = results(module, given, dtype, dtype, "cuda")
    assert all(result.dtype == dtype for result in got.values())
    errors = {name: relative_error(result, truth[name]) for name, result in got.items()}
    worst = dict.fromkeys(errors, 0.0)
    for other in yardsticks(module, given, dtype):
        worst = {name: max(error, relative_error(other[name], truth[name])) for name, error in worst.items()}
        wrong = {name: error for name, error in errors.items() if not error <= FACTOR * worst[name] + FLOOR[dtype]}
        if not wrong:
            return
    pytest.fail(f"relative errors {wrong}, torch's own {worst}")


def yardsticks(module: nn.Module, given: Given, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """The reference in `dtype`, where TF32 is not meant, and in float64 with random errors wherever a kernel rounds."""
    if dtype != torch.float32:
        yield results(module, given, dtype, dtype, "reference")
    epsilon = TF32_EPSILON["cuda"] if dtype == torch.float32 else torch.finfo(dtype).eps
    for _ in range(DRAWS):
        inexact = copy.deepcopy(module)
        with torch.no_grad():
            for name, parameter in inexact.named_parameters():
                if "bias" in name:
                    parameter.copy_(random_errors(parameter, epsilon))
        with random_roundings(epsilon):
            drawn = results(inexact, given, dtype, torch.float64, "reference")
        yield drawn


@layers
@cases
@dtypes
def test_layers(kind: str, case: Case, dtype: torch.dtype) -> None:
    for attempt in range(ATTEMPTS.get(kind, 1), 0, -1):
        module = layer_of(kind, case, dtype)
        try:
            assert_right(module, given_to(kind, module, case, dtype), dtype)
            return
        except pytest.fail.Exception:
            if attempt == 1:
                raise


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@dtypes
def test_cells(kind: str, bias: bool, dtype: torch.dtype) -> None:
    made, _, options = classes(kind)
    cell = made(INPUT, HIDDEN, bias=bias, dtype=dtype, **options).double()
    assert_right(cell, Given(cast((random(BATCH, INPUT), initial_state(kind, cell)), dtype), {}), dtype)


@layers
@dtypes
def test_inference_gives_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    case = CASES["lengths and resets"]
    module = layer_of(kind, case, dtype).to(dtype)
    module.backend = "cuda"
    arguments, masks = given_to(kind, module, case, dtype)
    trained = tensors(module(*arguments, **masks))
    for without in (torch.no_grad(), torch.inference_mode()):
        with without:
            outputs = tensors(module.eval()(*arguments, **masks))
        assert all(torch.equal(output, other) for output, other in zip(outputs, trained, strict=True))


@layers
def test_the_context_names_it(kind: str) -> None:
    module = layer_of(kind, CASES["bidirectional"], torch.bfloat16).bfloat16()
    (x, _), _ = given_to(kind, module, CASES["bidirectional"], torch.bfloat16)
    with fastrnn.use_backend("cuda"):
        assert fastrnn.explain(module, x).layers == ["cuda"]
        output, _ = module(x)
    module.backend = "cuda"
    assert torch.equal(output, module(x)[0])


@pytest.mark.usefixtures("on_the_host")
def test_the_environment_names_it(host_extension: ModuleType) -> None:
    code = """
import importlib.util, sys, torch
from fastrnn import extension
spec = importlib.util.spec_from_file_location("fastrnn_host._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
extension._load = lambda: module
import fastrnn
lstm = fastrnn.LSTM(3, 4, num_layers=2, dtype=torch.bfloat16)
x = torch.randn(5, 2, 3, dtype=torch.bfloat16)
lstm(x)[0].sum().backward()
print(*fastrnn.explain(lstm, x).layers)
"""
    command = [sys.executable, "-c", code, str(host_extension.__file__)]
    done = subprocess.run(command, env={**os.environ, "FASTRNN_BACKEND": "cuda"}, capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == (["cuda", "cuda"], 0), done.stderr


REFUSED = {
    "float64": (
        "GRU",
        {"dtype": torch.float64},
        "it computes in bfloat16, float16 and float32 only, got torch.float64",
    ),
    "projection": ("LSTM", {"proj_size": 2, "dtype": torch.float16}, r"it has no projections \(proj_size\) yet"),
    "dropped": ("GRU", {"recurrent_dropout": 0.5, "dtype": torch.float16}, "it has no recurrent dropout yet"),
    "too wide": ("RNN", {"hidden_size": 5000, "dtype": torch.bfloat16}, "it takes heads of up to .*, got 5000"),
}


@pytest.mark.parametrize(("name", "options", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_serve_raises(name: str, options: dict[str, Any], reason: str) -> None:
    module = getattr(fastrnn, name)(**{"input_size": INPUT, "hidden_size": HIDDEN, "backend": "cuda", **options})
    x = random(TIME, BATCH, INPUT, dtype=options["dtype"])
    with pytest.raises(CannotServe, match=rf"backend 'cuda' cannot serve this call: {reason}"):
        module(x)


def test_float32_is_refused_where_torch_forbids_tf32() -> None:
    module, x = fastrnn.LSTM(INPUT, HIDDEN, backend="cuda"), random(TIME, BATCH, INPUT, dtype=torch.float32)
    assert module(x)[0].dtype == torch.float32
    torch.backends.cudnn.allow_tf32 = False
    with pytest.raises(CannotServe, match="it multiplies float32 as TF32 only, which torch"):
        module(x)


@layers
def test_what_torch_allows_backward_is_as_it_was_forward(kind: str) -> None:
    module = layer_of(kind, CASES["everything"], torch.float32).float()
    module.backend = "cuda"
    arguments, _ = given_to(kind, module, CASES["everything"], torch.float32)
    grads = []
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = True
        outputs = tensors(module(*arguments))
        torch.backends.cudnn.allow_tf32 = allowed
        grads.append(torch.autograd.grad(outputs, [*module.parameters()], [torch.ones_like(y) for y in outputs]))
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))
    assert len(outputs) == 1 + (2 if has_two_states(kind) else 1)
