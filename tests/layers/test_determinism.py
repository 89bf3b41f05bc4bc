"""What is the same to the last bit: from run to run, between numbers of threads, and with deterministic algorithms.

Promised for the CPU's kernels: a call that is repeated with as many threads gives the same bits, gradients included.
With another number of threads the results and the states' gradients do, and the weights' gradients where fastrnn's
kernel computes them; dx, and with it everything below the last layer of a stack, comes from torch's matrix products,
which may then differ in the last bits. Calls without gradients may take another kernel than calls with them.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from benchmarks.checkout import ROOT
from fastrnn.backends.triton.interpreter import INTERPRETED
from tests.torch_parity import (
    BATCH,
    HIDDEN,
    INPUT,
    TIME,
    assert_close,
    classes,
    gradients,
    initial_state,
    layers,
    modules,
    numba_first,
    operator_backends,
    pair,
    random,
    skip_unless_projecting,
    tensors,
)

SIZES = {"rows among threads": (16, 24, 40, 64), "units among threads": (6, 1, 64, 256)}
"""T, B, I, H that two threads share, in either way, and whose weights' gradients are fastrnn's own."""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def large(kind: str, sizes: tuple[int, int, int, int], **options: Any) -> tuple[nn.Module, list[Any], dict[str, Any]]:
    """A layer, its arguments and masks."""
    steps, batch, inputs, hidden = sizes
    module = classes(kind)[0](inputs, hidden, backend="numba", **classes(kind)[2], **options)
    x = random(steps, batch, inputs, grad=True, dtype=torch.float32)
    masks = {"lengths": torch.randint(0, steps + 1, (batch,)), "resets": torch.rand(steps, batch) < 0.1}
    return module, [x, initial_state(kind, module, batch, grad=True)], masks


def everything(module: nn.Module, given: list[Any], masks: dict[str, Any]) -> dict[str, Tensor]:
    """Results with and without gradients, and every gradient, by name."""
    with torch.no_grad():
        alone = tensors(module(*given, **masks))
    results = tensors(module(*given, **masks))
    named = {"dx": given[0], **{f"d state {i}": state for i, state in enumerate(tensors(given[1]))}}
    named |= {f"d {name}": parameter for name, parameter in module.named_parameters()}
    found = {f"alone {i}": result for i, result in enumerate(alone)} | {f"{i}": r for i, r in enumerate(results)}
    return found | dict(zip(named, gradients(results, named.values()), strict=True))


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    return [name for name in first if not torch.equal(first[name], second[name])]


three_kinds = pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM"])
two_sizes = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


@three_kinds
@two_sizes
@pytest.mark.parametrize(
    ("options", "masked"),
    [({"num_layers": 2, "bidirectional": True}, False), ({"recompute": True}, True)],
    ids=["stack", "masked"],
)
def test_from_run_to_run(kind: str, sizes: tuple[int, int, int, int], options: dict[str, Any], masked: bool) -> None:
    """The first call and those that follow it the short way, each with memory that others have used in between."""
    module, given, masks = large(kind, sizes, **options)
    runs = []
    for _ in range(3):
        runs.append(everything(module, given, masks if masked else {}))
        classes("GRU")[0](32, 48, backend="numba")(torch.full((10, 9, 32), float("nan")))[0].sum().backward()
    assert differing(runs[0], runs[1]) == []
    assert differing(runs[0], runs[2]) == []


PROGRAM = """
import torch
from tests.layers import test_determinism
torch.set_num_threads(2)
print(test_determinism.digest())
"""


def digest() -> str:
    """Of all that layers of every kind compute from the same seed."""
    bits = hashlib.sha256()
    for kind in ("RNN_RELU", "GRU", "LSTM"):
        torch.manual_seed(3)
        for result in everything(*large(kind, (20, 9, 24, 48), num_layers=2, dropout=0.3, bidirectional=True)).values():
            bits.update(result.detach().numpy().tobytes())
    return bits.hexdigest()


def test_from_process_to_process(tmp_path: Path) -> None:
    paths = [str(Path(fastrnn.__file__).parents[1]), str(ROOT)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", PROGRAM]
    found = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1] == digest()


@three_kinds
@two_sizes
@pytest.mark.parametrize(
    ("options", "masked"),
    [({"bidirectional": True}, False), ({"recompute": True}, True)],
    ids=["both directions", "masked"],
)
def test_between_numbers_of_threads(
    kind: str, sizes: tuple[int, int, int, int], options: dict[str, Any], masked: bool
) -> None:
    module, given, masks = large(kind, sizes, **options)
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(everything(module, given, masks if masked else {}))
    by_torch = {"dx"} | ({name for name in runs[0] if name.startswith("d weight")} if masked else set())
    for run in runs[1:]:
        assert set(differing(runs[0], run)) <= by_torch
        assert_close([run[name] for name in by_torch], [runs[0][name] for name in by_torch], tolerance=1e-6)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Also fills what is not yet written with NaN, so that an element that nobody writes shows."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def calls(kind: str, module: nn.Module) -> list[tuple[Any, dict[str, Any]]]:
    """What a module can be called with, each in turn."""
    if kind.endswith("CELL"):
        x = random(BATCH, INPUT, grad=True)
        return [((x, initial_state(kind, module)), {}), ((x,), {}), ((x[0],), {})]
    x = random(TIME, BATCH, INPUT, grad=True)
    lengths, resets = torch.tensor([3, 0, 5]), torch.rand(TIME, BATCH) < 0.3
    packed = pack_padded_sequence(x, [3, 5, 1], enforce_sorted=False)
    return [
        ((x, initial_state(kind, module)), {}),
        ((x,), {"lengths": lengths, "resets": resets}),
        ((packed,), {}),
        ((x[:1],), {}),
        ((x[:0],), {}),
        ((x[:, :0],), {}),
        ((x[:, 0],), {}),
    ]


@numba_first
@modules
def test_deterministic_algorithms_change_nothing(backend: str, kind: str, deterministic: None) -> None:
    is_quick = backend != "triton" or not INTERPRETED  # by the interpreter, which is slow
    stack = {"num_layers": 2, "bidirectional": True, "dropout": 0.5}
    for option in ({}, stack) if is_quick and not kind.endswith("CELL") else ({},):
        module, _ = pair(kind, backend=backend, **option)
        module.recompute = not option
        for given, masks in calls(kind, module)[: None if is_quick else 1]:
            outcomes = []
            for asked in (True, True, False):
                torch.use_deterministic_algorithms(asked)
                torch.manual_seed(2)
                results = module(*given, **masks)
                outcomes.append([*tensors(results), *gradients(results, module.parameters(), materialize_grads=True)])
            assert all(tensor.isfinite().all() for tensor in outcomes[0])
            for other in outcomes[1:]:
                assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@operator_backends
def test_deterministic_algorithms_with_projections(backend: str, deterministic: None) -> None:
    skip_unless_projecting(backend)
    module, _ = pair("LSTM", backend=backend, proj_size=2, num_layers=2)
    x = random(TIME, BATCH, INPUT)
    runs = [module(x) for _ in range(2)]
    found = [[*tensors(results), *gradients(results, module.parameters())] for results in runs]
    assert all(a.isfinite().all() and torch.equal(a, b) for a, b in zip(*found, strict=True))


@operator_backends
def test_dropout_is_torchs_mask(backend: str) -> None:
    """Seen through a second layer that hands on what it gets: ones, some of them dropped, the others enlarged."""
    module = fastrnn.RNN(INPUT, HIDDEN, 2, nonlinearity="relu", dropout=0.25, dtype=torch.float64, backend=backend)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0.fill_(1.0)
        module.weight_ih_l1.copy_(torch.eye(HIDDEN))
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(module(torch.zeros(TIME, BATCH, INPUT, dtype=torch.float64))[0])
    torch.manual_seed(1)
    expected = F.dropout(torch.ones(TIME, BATCH, HIDDEN, dtype=torch.float64), 0.25)
    assert torch.equal(masks[0], expected)
    assert torch.equal(masks[1], expected)
    assert not torch.equal(masks[2], expected)


@layers
def test_without_dropout_no_random_number_is_drawn(kind: str) -> None:
    x = random(TIME, BATCH, INPUT)
    for options in ({"num_layers": 2, "dropout": 0.5}, {"num_layers": 2}):
        module, _ = pair(kind, backend="numba", **options)
        before = torch.get_rng_state()
        module.train(not options.get("dropout"))(x)[0].sum().backward()
        assert torch.equal(torch.get_rng_state(), before)


@layers
def test_a_checkpoint_draws_the_same_mask_again(kind: str) -> None:
    module, _ = pair(kind, backend="numba", num_layers=2, dropout=0.5)
    x = random(TIME, BATCH, INPUT, grad=True)
    outcomes = []
    for call in (lambda x: module(x)[0], lambda x: checkpoint(module, x, use_reentrant=False)[0]):
        torch.manual_seed(4)
        outcomes.append(gradients(call(x), [x, *module.parameters()]))
    assert_close(*outcomes, tolerance=0)
