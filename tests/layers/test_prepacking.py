"""Weights that are laid out once: results as without, and changes are seen, counted or not."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adam import adam

import fastrnn
from benchmarks import __main__ as command
from benchmarks import runner
from fastrnn import watched_weights
from fastrnn.backends import module
from fastrnn.backends.numba import panels, unpacked
from fastrnn.backends.numba.layer_forward import ForwardLaunch
from fastrnn.binding.streamed import Streamed
from tests.layers.prepacked import KINDS, B, H, I, T, all_at_once, flat, pair, repeat
from tests.plans import prepacked_plans_of

pytestmark = pytest.mark.skipif(bool(module("numba").ready()), reason="no Numba")

assert not unpacked.pays(T, B, H)  # so that both lay them out, and results are equal to the last bit


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where weights were laid out."""
    places: list[int] = []
    lay_out = panels.PanelsLaunch.run

    def run(self: panels.PanelsLaunch, memory: int) -> None:
        places.append(memory)
        lay_out(self, memory)

    monkeypatch.setattr(panels.PanelsLaunch, "run", run)
    return places


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_as_without(kind: str, options: dict[str, Any], laid_out: list[int]) -> None:
    plain, prepacked = pair(kind, **options)
    repeat(prepacked, torch.zeros(T, B, I))
    laid_out.clear()
    for seed in range(3):
        x = torch.randn(T, B, I, generator=torch.Generator().manual_seed(seed))
        found = repeat(prepacked, x)
        assert not laid_out
        expected = repeat(plain, x)
        assert laid_out
        laid_out.clear()
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 40])
def test_cells_give_what_they_give_without(kind: str, batch: int, laid_out: list[int]) -> None:
    plain, prepacked = pair(f"{kind}Cell")
    x = torch.randn(batch, I)
    repeat(prepacked, x)
    laid_out.clear()
    for found, expected in zip(repeat(prepacked, 2 * x), repeat(plain, 2 * x), strict=True):
        torch.testing.assert_close(found, expected)
    assert prepacked_plans_of(prepacked)


def _replaced(net: nn.Module) -> None:
    net.weight_hh_l0 = nn.Parameter(2 * net.weight_hh_l0.detach())


def _loaded(net: nn.Module) -> None:
    net.load_state_dict({name: 2 * value for name, value in net.state_dict().items()})


def _multiplied(net: nn.Module) -> None:
    with torch.no_grad():
        net.bias_ih_l0.mul_(3)


def _trained(net: nn.Module) -> None:
    net(torch.ones(T, B, I))[0].sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.5).step()


def _trained_by_fused_kernels(net: nn.Module) -> None:
    net(torch.ones(T, B, I))[0].sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.5, fused=True).step()  # which autograd does not count


def _swapped_twice(net: nn.Module) -> None:
    for _ in range(2):  # memory that is given back may be given out again
        net.weight_hh_l0.data = net.weight_hh_l0.data * 2


def _transposed(net: nn.Module) -> None:
    net.weight_hh_l0.data = net.weight_hh_l0.data[:H].t().repeat(len(net.weight_hh_l0) // H, 1)


def _swapped(net: nn.Module) -> None:
    net.weight_ih_l0.data = 2 * net.weight_ih_l0.data


def _widened(net: nn.Module) -> None:
    net.double()


@pytest.mark.parametrize(
    "change",
    [
        _replaced,
        _loaded,
        _multiplied,
        _trained,
        _trained_by_fused_kernels,
        _swapped,
        _swapped_twice,
        _transposed,
        _widened,
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_changes_that_are_counted_are_seen(kind: str, change: Callable[[nn.Module], None], laid_out: list[int]) -> None:
    plain, prepacked = pair(kind)
    before = repeat(prepacked, torch.ones(T, B, I))
    for net in (plain, prepacked):
        change(net)
    x = torch.ones(T, B, I, dtype=next(prepacked.parameters()).dtype)
    with torch.no_grad():
        for _ in range(4):
            found = flat(prepacked(x))
            assert all(map(torch.equal, found, repeat(plain, x)))
        laid_out.clear()
        prepacked(x)
    assert not laid_out
    assert change is _widened or not torch.equal(found[0], before[0])


def _through_data(net: nn.Module) -> None:
    net.weight_hh_l0.data.mul_(2)


def _through_dlpack(net: nn.Module) -> None:
    for parameter in net.parameters():
        torch.from_dlpack(parameter.detach()).mul_(0.5)


def _through_numpy(net: nn.Module) -> None:
    array = net.weight_ih_l0.detach().numpy()
    array *= 2


def _through_the_storage(net: nn.Module) -> None:
    net.bias_ih_l0.untyped_storage().fill_(0)


def _through_functional_adam(net: nn.Module) -> None:
    parameters = list(net.parameters())
    ones, *moments = ([torch.full_like(p, value) for p in parameters] for value in (1.0, 0.0, 0.0))
    steps = [torch.tensor(1.0) for _ in parameters]
    options: dict[str, Any] = {"amsgrad": False, "beta1": 0.9, "beta2": 0.99, "lr": 0.1, "weight_decay": 0.0}
    with torch.no_grad():
        adam(parameters, ones, *moments, [], steps, fused=True, eps=1e-8, maximize=False, **options)


def _through_all_reduce(net: nn.Module) -> None:
    """With another rank, which has weights of its own: both have their sum then."""
    store, others = dist.HashStore(), [torch.ones_like(p) for p in net.parameters()]

    def reduce(rank: int, tensors: list[Tensor]) -> None:
        group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=30))
        for tensor in tensors:
            group.allreduce([tensor]).wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(reduce, range(2), [[p.detach() for p in net.parameters()], others]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "change",
    [
        _through_data,
        _through_dlpack,
        _through_numpy,
        _through_the_storage,
        _through_functional_adam,
        _through_all_reduce,
    ],
)
def test_changes_that_nobody_counts_are_seen(change: Callable[[nn.Module], None], dtype: torch.dtype) -> None:
    if change is _through_all_reduce and not dist.is_gloo_available():
        pytest.skip("torch without gloo")
    plain, prepacked = pair("GRU", num_layers=2, dtype=dtype)
    x = torch.ones(T, B, I, dtype=dtype)
    before = repeat(prepacked, x)
    assert prepacked_plans_of(prepacked)
    counted = [parameter._version for parameter in prepacked.parameters()]
    for net in (plain, prepacked):
        change(net)
    assert counted == [parameter._version for parameter in prepacked.parameters()]
    with torch.no_grad():
        found = flat(prepacked(x))
    assert all(map(torch.equal, found, repeat(plain, x)))
    assert not torch.equal(found[0], before[0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_process_writes_into_shared_memory_is_seen(kind: str, tmp_path: Path) -> None:
    plain, prepacked = pair(kind)
    file, values = tmp_path / "weights", plain.weight_hh_l0.detach()
    file.write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(file), shared=True, size=values.numel()).view_as(values)
    prepacked.weight_hh_l0 = nn.Parameter(mapped)
    x = torch.ones(T, B, I)
    repeat(prepacked, x)
    values.mul_(-1.5)
    with file.open("r+b") as opened:
        opened.write(values.numpy().tobytes())
    assert all(map(torch.equal, repeat(prepacked, x), repeat(plain, x)))


def change_one_number(net: nn.Module, change: Callable[[Tensor], Any]) -> None:
    """Changes a number that is not in the sample that is compared."""
    weight = net.weight_hh_l0
    number = next(k for k in range(weight.numel()) if k not in watched_weights._sample(weight))
    change(weight.detach().view(-1)[number])


def _step(net: nn.Module, raises: bool) -> None:
    """A step of an optimizer that changes one number without counting it."""
    weight, bias = net.weight_hh_l0, net.bias_ih_l0
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    change_one_number(net, lambda number: weight.grad.view(-1)[number.storage_offset()].fill_(1))
    if raises:
        bias.grad = bias.grad.to_sparse()
    optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [bias]}], lr=2.5, fused=True)
    with pytest.raises(RuntimeError, match="sparse") if raises else nullcontext():
        optimizer.step()


@pytest.mark.parametrize("raises", [False, True], ids=["whole", "half"])
def test_a_step_is_seen_that_changes_one_number_or_raises_half_way(raises: bool) -> None:
    plain, prepacked = pair("LSTM")
    x = torch.ones(T, B, I)
    before = repeat(prepacked, x)
    for net in (plain, prepacked):
        _step(net, raises)
    found = repeat(prepacked, x)
    assert all(map(torch.equal, found, repeat(plain, x)))
    assert not torch.equal(found[0], before[0])


double = partial(change_one_number, change=lambda number: number.data.mul_(2))


@pytest.mark.parametrize("kind", KINDS)
def test_after_turning_it_off_every_change_is_seen(kind: str) -> None:
    plain, prepacked = pair(kind)
    x = torch.ones(T, B, I)
    before = repeat(prepacked, x)
    for net in (plain, prepacked):
        double(net)
    assert all(map(torch.equal, repeat(prepacked, x), before))
    assert prepacked.prepack(False) is prepacked
    assert all(map(torch.equal, repeat(prepacked, x), repeat(plain, x)))


@pytest.mark.parametrize("off", [False, True], ids=["again", "off-and-on"])
@pytest.mark.parametrize("kind", KINDS)
def test_prepacking_again_sees_every_change(kind: str, off: bool) -> None:
    plain, prepacked = pair(kind)
    x = torch.ones(T, B, I)
    repeat(prepacked, x)
    if off:
        prepacked.prepack(False)
    for net in (plain, prepacked):
        double(net)
    prepacked.prepack()
    assert all(map(torch.equal, repeat(prepacked, x), repeat(plain, x)))


@pytest.mark.parametrize("way", [Streamed, ForwardLaunch])
def test_what_changes_while_weights_are_laid_out_is_seen(way: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, prepacked = pair("GRU")
    if way is Streamed:
        plain, prepacked = plain.prepack(weights="float16"), prepacked.prepack(weights="float16")
    x, keep = torch.ones(T, B, I), way.keep_weights

    def keep_and_change(self: Any) -> None:
        keep(self)
        monkeypatch.undo()
        prepacked.weight_hh_l0.mul_(2)

    monkeypatch.setattr(way, "keep_weights", keep_and_change)
    repeat(prepacked, x)
    with torch.no_grad():
        plain.weight_hh_l0.mul_(2)
    assert all(map(torch.equal, repeat(prepacked, x), repeat(plain, x)))


def test_calls_at_the_same_time_do_not_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, prepacked = pair("LSTM")
    inputs = [torch.randn(T, B, I) for _ in range(8)]
    expected = [repeat(plain, x) for x in inputs]
    repeat(prepacked, inputs[0])
    launch, during = ForwardLaunch._start, []

    def meanwhile(self: ForwardLaunch, place: int, arrays: Any) -> None:
        if not during:
            during.append(place)
            with torch.no_grad():
                again.extend(flat(prepacked(inputs[1])))
        else:
            during.append(place)
        launch(self, place, arrays)

    again: list[Tensor] = []
    monkeypatch.setattr(ForwardLaunch, "_start", meanwhile)
    found = repeat(prepacked, inputs[0])
    assert during[0] != during[1]
    assert during[0] == during[2] == during[3]
    assert all(map(torch.equal, found, expected[0]))
    assert all(map(torch.equal, again, expected[1]))
    all_at_once(prepacked, inputs, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_not_affected(kind: str) -> None:
    plain, prepacked = pair(kind)
    for _ in range(3):
        for net in (plain, prepacked):
            net.zero_grad()
            net(torch.ones(T, B, I))[0].square().sum().backward()
            with torch.no_grad():
                net.weight_hh_l0.data.add_(net.weight_hh_l0.grad, alpha=-0.1)
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), prepacked.parameters(), strict=True))


def test_parameters_whose_changes_are_not_counted_are_read_in_every_call() -> None:
    with torch.inference_mode():
        plain, prepacked = pair("GRU")
        x = torch.ones(T, B, I)
        repeat(prepacked, x)
        for net in (plain, prepacked):
            net.weight_hh_l0.mul_(2)
        assert all(map(torch.equal, repeat(prepacked, x), repeat(plain, x)))


def test_it_is_copied_saved_and_shown() -> None:
    lstm = fastrnn.LSTM(3, 4).prepack()
    for one in (lstm, copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert one.prepacked
        assert repr(one) == "LSTM(3, 4, prepacked)"
    assert repr(fastrnn.GRUCell(3, 4, backend="numba").prepack()) == "GRUCell(3, 4, backend='numba', prepacked)"
    assert repr(lstm.prepack(False)) == "LSTM(3, 4)"


def test_it_is_measured_beside_the_usual_way(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["--cells", "gru", "--shapes", f"{T}x{B}x{I}x{H}", "--backends", "numba", "--prepack", "--no-memory"]
    assert command.main([*arguments, "--budget", "0.01", "--json", str(figures)]) == command.OK
    inference, training = json.loads(figures.read_text())["cases"]
    assert [entry["contender"] for entry in inference["contenders"]] == [
        "torch.nn",
        "fastrnn numba",
        "fastrnn numba, prepacked",
    ]
    assert [entry["status"] for entry in inference["contenders"]] == [runner.MEASURED] * 3
    assert training["contenders"][2]["status"] == runner.NOT_SERVED
