"""fastrnn's modules among what else people train, serve and save models with."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn as sequences
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

import fastrnn
from benchmarks.cost.race import threads
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
    pair,
    random,
    tensors,
)

forking = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # from Python 3.12 on
DEADLINE = 60
"""Seconds after which a worker that hangs is an error."""


@pytest.fixture
def two_threads() -> Iterator[None]:
    with threads(2):
        yield


class First(nn.Module):
    """The first of a recurrent layer's results, for `nn.Sequential`."""

    def forward(self, results: Any) -> Tensor:
        return tensors(results)[0]


def model(recurrent: nn.Module) -> nn.Sequential:
    """Features in, two scores out."""
    dtype = next(recurrent.parameters()).dtype
    return nn.Sequential(nn.Linear(3, INPUT, dtype=dtype), recurrent, First(), nn.Linear(HIDDEN, 2, dtype=dtype))


def models(kind: str, **options: Any) -> tuple[nn.Sequential, nn.Sequential]:
    """The same model around fastrnn's layer, by numba's kernels, and torch's."""
    ours, theirs = (model(module) for module in pair(kind, backend="numba", **options))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def features(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return random(*([BATCH, 3] if kind.endswith("CELL") else [TIME, BATCH, 3]), dtype=dtype)


def arguments(kind: str, module: nn.Module) -> tuple[Tensor, Any]:
    rows = [BATCH] if kind.endswith("CELL") else [TIME, BATCH]
    return random(*rows, INPUT, grad=True), initial_state(kind, module, grad=True)


@modules
@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizers_that_take_all_parameters_at_once(kind: str, optimizer: Any, how: dict[str, bool]) -> None:
    ours, theirs = models(kind)
    x = features(kind)
    for one in (ours, theirs):
        steps = optimizer(one.parameters(), lr=0.1, weight_decay=0.01, **how)
        for _ in range(3):
            steps.zero_grad()
            one(x).square().sum().backward()
            nn.utils.clip_grad_norm_(one.parameters(), 0.5, foreach=True)
            steps.step()
    # Adam divides by gradients near zero, which enlarges rounding.
    assert_close(list(ours.parameters()), list(theirs.parameters()), tolerance=1e-7)


@layers
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_lightning_trains_as_with_torch(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    monkeypatch.chdir(tmp_path)

    class Task(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self, layers: nn.Module) -> None:
            super().__init__()
            self.layers = layers
            self.losses: list[float] = []

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            loss = (self.layers(batch) - batch.sum(-1, keepdim=True)).square().mean()
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    data = DataLoader([random(TIME, BATCH, 3) for _ in range(4)], batch_size=None)
    tasks = [Task(one) for one in models(kind)]
    for task in tasks:
        lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(task, data)
    ours, theirs = (task.losses for task in tasks)
    assert len(ours) == 12
    assert ours[-1] < ours[0]
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert list(tmp_path.iterdir()) == []


@layers
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_sequences_padded_packed_and_back(kind: str, enforce_sorted: bool, batch_first: bool) -> None:
    ours, theirs = pair(kind, backend="numba", batch_first=batch_first)
    given = [random(length, INPUT, grad=True) for length in ((5, 3, 1) if enforce_sorted else (2, 5, 3))]
    lengths = torch.tensor([len(one) for one in given])
    outcomes = []
    for module in (ours, theirs):
        padded = sequences.pad_sequence(given, batch_first)
        output, _ = module(sequences.pack_padded_sequence(padded, lengths, batch_first, enforce_sorted))
        again, found = sequences.pad_packed_sequence(output, batch_first, padding_value=-1.0, total_length=7)
        assert torch.equal(found, lengths)
        parts = sequences.unpad_sequence(again, found, batch_first)
        packed, _ = module(sequences.pack_sequence(given, enforce_sorted))
        assert_close(sequences.unpack_sequence(packed), parts, tolerance=0)
        outcomes.append([again, *parts, *torch.autograd.grad(sum(part.square().sum() for part in parts), given)])
    assert_close(*outcomes)


@modules
def test_state_dicts_in_files(kind: str, tmp_path: Path) -> None:
    """With `weights_only`, mapped into memory, and taken as they are: what `torch.load` does with strangers' files."""
    ours, theirs = pair(kind, backend="numba")
    torch.save(ours.state_dict(), tmp_path / "ours.pt")
    loaded = torch.load(tmp_path / "ours.pt", weights_only=True, mmap=True)
    fresh = [source(INPUT, HIDDEN, dtype=torch.float64, **classes(kind)[2]) for source in classes(kind)[:2]]
    given = arguments(kind, ours)
    for module in fresh:
        module.load_state_dict(loaded, assign=True)
        assert_close(tensors(module(*given)), tensors(theirs(*given)))


@modules
def test_a_whole_module_needs_a_trusting_load(kind: str) -> None:
    ours, _ = pair(kind, backend="numba")
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match=type(ours).__name__):
        torch.load(file, weights_only=True)
    file.seek(0)
    given = arguments(kind, ours)
    assert_close(tensors(torch.load(file, weights_only=False)(*given)), tensors(ours(*given)), tolerance=0)


@modules
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["mean", "exponential"])
def test_averaged_models(kind: str, average: Any) -> None:
    outcomes = []
    for one in models(kind):
        averaged, steps = AveragedModel(one, multi_avg_fn=average), torch.optim.SGD(one.parameters(), lr=0.1)
        torch.manual_seed(1)
        for _ in range(3):
            averaged(features(kind)), one(features(kind)).square().sum().backward()
            steps.step()
            averaged.update_parameters(one)
        outcomes.append(averaged(features(kind)))
    assert_close(*outcomes)


class Encoded(Dataset[Tensor]):
    """Sequences that a module turns into features in the loader's workers."""

    def __init__(self, module: nn.Module, given: list[Tensor]) -> None:
        self.module, self.given = module, given

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return tensors(self.module(self.given[index]))[0]


@layers
@forking
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than there are cores
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_workers_of_a_data_loader_compute(kind: str, two_threads: None) -> None:
    """After this process has computed with several threads, which a forked child does not have."""
    ours, _ = pair(kind, 32, 48, backend="numba", dtype=torch.float32)
    data = Encoded(ours, [torch.randn(20, 8, 32) for _ in range(4)])
    expected = [data[index] for index in range(4)]
    ours(data.given[0])[0].sum().backward()
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=DEADLINE)
    assert_close(list(loader), expected, tolerance=0)


def _double_and_report(module: nn.Module, x: Tensor, results: Any) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
        results.put(tensors(module(x))[0].numpy())


@forking
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_parameters_in_shared_memory_are_one_for_all_processes() -> None:
    """Also for a module that remembers its last call."""
    ours, x = fastrnn.GRU(INPUT, HIDDEN, backend="numba").share_memory(), torch.randn(TIME, BATCH, INPUT)
    with torch.no_grad():
        before = [ours(x)[0] for _ in range(2)][-1]
        fork = multiprocessing.get_context("fork")
        results = fork.Queue()
        child = fork.Process(target=_double_and_report, args=(ours, x, results))
        child.start()
        there = torch.from_numpy(results.get(timeout=DEADLINE))
        child.join(DEADLINE)
        here = ours(x)[0]
    assert child.exitcode == 0
    assert torch.equal(here, there)
    assert not torch.equal(here, before)


@modules
def test_several_threads_share_a_module(kind: str) -> None:
    """Calls of several shapes, with and without gradients, at the same time; each thread has inputs of its own."""
    ours, _ = pair(kind, backend="numba")
    rows = [[BATCH], [1]] if kind.endswith("CELL") else [[TIME, BATCH], [1, BATCH]]

    def work(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            alone = tensors(ours(x))
        results = ours(x)
        return [*alone, *gradients(results, [x, *ours.parameters()])]

    given = [[random(*sizes, INPUT, grad=True) for sizes in rows] for _ in range(4)]
    expected = [[work(x) for x in each] for each in given]
    failures: list[BaseException] = []

    def repeat(thread: int) -> None:
        try:
            for turn in range(40):
                at = (turn // 10) % len(rows)
                assert_close(work(given[thread][at]), expected[thread][at])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@modules
def test_memory_formats_leave_parameters_as_they_are(kind: str) -> None:
    """Recurrent layers have no images: `channels_last` is for the convolutions beside them."""
    ours, _ = pair(kind, backend="numba")
    given = arguments(kind, ours)
    expected = tensors(ours(*given))
    for memory_format in (torch.channels_last, torch.contiguous_format, torch.preserve_format):
        nn.ModuleList([ours, nn.Conv2d(1, 2, 3)]).to(memory_format=memory_format)
        assert_close(tensors(ours(*given)), expected, tolerance=0)


@modules
def test_default_dtype_and_device(kind: str) -> None:
    """They are for new modules; one that there is already computes where it is."""
    ours, theirs, options = classes(kind)
    there_already = ours(INPUT, HIDDEN, **options)
    x = features(kind, torch.float32).new_ones(*([BATCH, INPUT] if kind.endswith("CELL") else [TIME, BATCH, INPUT]))
    expected = tensors(there_already(x))
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        made, as_torchs = ours(INPUT, HIDDEN, **options), theirs(INPUT, HIDDEN, **options)
        results = tensors(there_already(x))
        fresh = tensors(made(x.to("meta", torch.float64)))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert [(p.dtype, p.device) for p in made.parameters()] == [(p.dtype, p.device) for p in as_torchs.parameters()]
    assert {(p.dtype, p.device.type) for p in made.parameters()} == {(torch.float64, "meta")}
    assert {(result.dtype, result.device.type) for result in fresh} == {(torch.float64, "meta")}
    assert_close(results, expected, tolerance=1e-6)


@modules
def test_initialisation_can_be_skipped(kind: str) -> None:
    """Also of layers, which torch's refuse: it looks for `device` among the constructor's own arguments."""
    ours, theirs, options = classes(kind)
    made = nn.utils.skip_init(ours, INPUT, HIDDEN, **options)
    made.load_state_dict(theirs(INPUT, HIDDEN, **options).state_dict())
    assert tensors(made(torch.ones(BATCH, INPUT)))[0].isfinite().all()


@modules
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_scaled_losses_under_autocast(kind: str, dtype: torch.dtype) -> None:
    """GradScaler's steps are those without it; steps whose gradients overflow are left out, and the scale halved."""
    given, outcomes = features(kind, torch.float32), []
    ours, _ = models(kind, dtype=torch.float32)
    for scale, factor in ((None, 1.0), (2.0**8, 1.0), (2.0**127, 1e4)):
        one = copy.deepcopy(ours)
        before = [parameter.detach().clone() for parameter in one.parameters()]
        steps = torch.optim.SGD(one.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None, growth_interval=100)
        for _ in range(3):
            steps.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = factor * one(given).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(steps)
            scaler.update()
        outcomes.append([after.detach() - earlier for after, earlier in zip(one.parameters(), before, strict=True)])
    plain, scaled, overflown = outcomes
    assert any(change.abs().max() > 0 for change in plain)
    # Gradients round differently where scaling takes them out of float16's subnormal numbers.
    assert_close(scaled, plain, tolerance=32 * torch.finfo(dtype).eps)
    assert all(not change.any() for change in overflown)
    assert scaler.get_scale() == 2.0**124


@modules
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_training_in_16_bits(kind: str, dtype: torch.dtype) -> None:
    """The loss falls, about as it does in float32."""
    ours, _ = models(kind, dtype=torch.float32)
    x = features(kind, torch.float32)
    falls = []
    for wide in (True, False):
        one, given = (copy.deepcopy(ours), x) if wide else (copy.deepcopy(ours).to(dtype), x.to(dtype))
        steps, losses = torch.optim.SGD(one.parameters(), lr=0.1), []
        for _ in range(10):
            steps.zero_grad()
            loss = (one(given).float() - 1).square().mean()
            loss.backward()
            steps.step()
            losses.append(loss.item())
        falls.append(losses[0] - losses[-1])
    assert falls[1] > 0
    assert falls[1] == pytest.approx(falls[0], rel=0.1)
