"""Two processes on two halves of a batch, by DistributedDataParallel and FSDP2, against one process on all of it.

Both processes are started once and go through all cases; float64 and shares of equal size leave rounding alone between
them and the one. Evaluations between the steps repeat a call, as `fastrnn.binding` keeps its plan, with weights that
training has changed, and that FSDP2 has gathered anew, into other memory, and taken away again.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastrnn
from fastrnn.binding import bind
from tests.cells.zoo import peephole_lstm
from tests.selection import parameters_of_run
from tests.torch_parity import assert_close

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

PROCESSES = 2
STEPS = 4
EVALUATIONS = 3  # of one batch after each step: the first of a kind is remembered, the others repeat it
PATIENCE = 300  # seconds; all takes some ten
EXACT = 1e-12

CLASSES = ["RNN", "GRU", "LSTM", "Recurrent"]
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, bucket views": {"gradient_as_bucket_view": True},
    "ddp, static graph": {"static_graph": True},
    "ddp, unused parameters": {"find_unused_parameters": True},
    "ddp, accumulated": {},
    "ddp, compiled": {},
    "fsdp": {"reshard_after_forward": True},
    "fsdp, gathered until backward": {"reshard_after_forward": False},
    "fsdp, accumulated": {"reshard_after_forward": True},
    "fsdp, compiled": {"reshard_after_forward": True},
}
CASES = [
    pytest.param(name, way, marks=pytest.mark.exhaustive if name == "RNN" or "compiled" in way else ())
    for name in CLASSES
    for way in WAYS
    if name == "GRU" or ("compiled" not in way and (name != "Recurrent" or way in ("ddp", "fsdp")))
]
"""Compilation takes longer than all else: one class shows it. What another cell adds are parameters, and with heads a
dimension."""


class Model(nn.Module):
    """No size is even where weights are cut: RNN's have 5 rows, GRU's 15, and the last layer one."""

    def __init__(self, name: str, unused: bool) -> None:
        super().__init__()
        options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
        if name == "Recurrent":
            self.rnn: nn.Module = fastrnn.Recurrent(peephole_lstm, 3, 5, num_heads=5, backend="reference", **options)
        else:
            self.rnn = getattr(fastrnn, name)(3, 5, **options)
        self.head = nn.Linear(10, 1, dtype=torch.float64)
        self.unused = nn.Linear(2, 2, dtype=torch.float64) if unused else None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Trained(NamedTuple):
    weights: list[Tensor]
    outputs: Tensor
    """(STEPS, EVALUATIONS, T, B, 1)"""
    usual: int
    """calls of the module that took the usual way"""


def data(way: str, name: str) -> tuple[Model, Tensor]:
    torch.manual_seed(3)
    return Model(name, unused="unused" in way), torch.randn(6, 8, 3, dtype=torch.float64)


def without_sync(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Within it backward adds to the gradients without exchanging them, but for the `last` part of a batch."""
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if last else model.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)
    return nullcontext()


def train(model: nn.Module, x: Tensor, parts: int) -> Tensor:
    """`Trained.outputs`; gradients of each step are those of `parts` parts of the batch, one after another."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    outputs = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        model.train()
        for index, part in enumerate(x.chunk(parts, 1)):
            with without_sync(model, last=index == parts - 1):
                (model(part).square().mean() / parts).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            outputs.append(torch.stack([model(x) for _ in range(EVALUATIONS)]))
    return torch.stack(outputs)


def distributed(way: str, model: Model) -> nn.Module:
    if way.startswith("ddp"):
        return DistributedDataParallel(model, **WAYS[way])
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.rnn, **WAYS[way])
    return fully_shard(model, **WAYS[way])


def whole(parameter: Tensor) -> Tensor:
    """A parameter's values, those that other processes hold included."""
    full_tensor = getattr(parameter, "full_tensor", None)
    return (parameter if full_tensor is None else full_tensor()).detach().clone()


def work(rank: int, folder: str, cases: list[tuple[str, str]]) -> None:
    """A process: trains the cases on its share of their batches, and writes down what came of it."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    calls: list[str] = []
    usual = bind.bind

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append("usual")
        return usual(*arguments, **options)

    bind.bind = counted
    trained = {}
    for name, way in cases:
        model, x = data(way, name)
        calls.clear()
        share = x.chunk(PROCESSES, 1)[rank].contiguous()
        parallel: Any = distributed(way, model)
        if "compiled" in way:
            parallel = torch.compile(parallel, backend="aot_eager")
        outputs = train(parallel, share, 2 if "accumulated" in way else 1)
        trained[name, way] = tuple(Trained([whole(p) for p in model.parameters()], outputs, len(calls)))
    torch.save(trained, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[tuple[str, str], Trained]]:
    """By process and case."""
    folder = tmp_path_factory.mktemp("distributed")
    cases = sorted({(parameters["name"], parameters["way"]) for parameters in parameters_of_run(request)})
    running = mp.spawn(work, (str(folder), cases), nprocs=PROCESSES, join=False)
    deadline = time.monotonic() + PATIENCE
    try:
        while not running.join(timeout=1):
            assert time.monotonic() < deadline, f"not done after {PATIENCE} seconds"
    finally:
        for process in running.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_two_processes_train_as_one(name: str, way: str, results: list[dict[tuple[str, str], Trained]]) -> None:
    model, x = data(way, name)
    before = [whole(parameter) for parameter in model.rnn.parameters()]
    outputs = train(model, x, 1)
    shares = outputs.chunk(PROCESSES, -2)
    for share, of_process in zip(shares, results, strict=True):
        trained = Trained(*of_process[name, way])
        assert_close(trained.weights, list(model.parameters()), EXACT)
        assert_close(trained.outputs, share, EXACT)
    # Otherwise nothing would have been shown: training moves all weights, and each step the outputs.
    assert not any(torch.equal(a, b) for a, b in zip(before, model.rnn.parameters(), strict=True))
    assert (outputs[1:] - outputs[:-1]).abs().amin(dim=(1, 2, 3, 4)).min() > 0


@pytest.mark.parametrize("way", ["ddp", "fsdp, gathered until backward"])
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_calls_are_repeated(name: str, way: str, results: list[dict[tuple[str, str], Trained]]) -> None:
    """The comparison above is of repeated calls too."""
    for of_process in results:
        assert Trained(*of_process[name, way]).usual < STEPS * (1 + EVALUATIONS)
