"""Weights that are laid out once: results as without, and changes that autograd counts are seen."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from benchmarks import __main__ as command
from benchmarks import runner
from fastrnn import remembered, repeated
from fastrnn.backends import module
from fastrnn.backends.numba import layer_forward, packing, unpacked

pytestmark = pytest.mark.skipif(bool(module("numba").ready()), reason="no Numba")

KINDS = ("RNN", "GRU", "LSTM")
T, B, I, H = 5, 4, 6, 20
assert not unpacked.pays(T, B, H)  # so that both lay them out, and results are equal to the last bit


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where weights were laid out."""
    places: list[int] = []
    lay_out = packing.Packed.run

    def run(self: packing.Packed, memory: int) -> None:
        places.append(memory)
        lay_out(self, memory)

    monkeypatch.setattr(packing.Packed, "run", run)
    return places


def pair(kind: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A module that is not prepacked, and one with equal parameters that is."""
    plain = getattr(fastrnn, kind)(I, H, backend="numba", **options)
    return plain, copy.deepcopy(plain).prepack()


def flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [tensor for result in results for tensor in flat(result)]


def repeat(net: nn.Module, *arguments: Any) -> list[Tensor]:
    """The results of a call that comes after others like it."""
    with torch.no_grad():
        for _ in range(3):
            results = net(*arguments)
    return flat(results)


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
    prepacked_calls = repeated._calls[remembered.Inference][prepacked]
    assert isinstance(prepacked_calls, remembered.Prepacked)


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


@pytest.mark.parametrize("kind", KINDS)
def test_after_turning_it_off_every_change_is_seen(kind: str) -> None:
    plain, prepacked = pair(kind)
    x = torch.ones(T, B, I)
    before = repeat(prepacked, x)
    for net in (plain, prepacked):
        net.weight_hh_l0.data.mul_(2)
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
        net.weight_hh_l0.data.mul_(2)
    prepacked.prepack()
    assert all(map(torch.equal, repeat(prepacked, x), repeat(plain, x)))


def test_what_changes_while_weights_are_laid_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, prepacked = pair("GRU")
    x, keep = torch.ones(T, B, I), layer_forward.Prepared.keep_weights

    def keep_and_change(self: layer_forward.Prepared) -> None:
        keep(self)
        monkeypatch.undo()
        prepacked.weight_hh_l0.mul_(2)

    monkeypatch.setattr(layer_forward.Prepared, "keep_weights", keep_and_change)
    repeat(prepacked, x)
    with torch.no_grad():
        plain.weight_hh_l0.mul_(2)
    assert all(map(torch.equal, repeat(prepacked, x), repeat(plain, x)))


def test_calls_at_the_same_time_do_not_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, prepacked = pair("LSTM")
    inputs = [torch.randn(T, B, I) for _ in range(8)]
    expected = [repeat(plain, x) for x in inputs]
    repeat(prepacked, inputs[0])
    launch, during = layer_forward.Prepared._launch, []

    def meanwhile(self: layer_forward.Prepared, place: int, arrays: Any) -> None:
        if not during:
            during.append(place)
            with torch.no_grad():
                again.extend(flat(prepacked(inputs[1])))
        else:
            during.append(place)
        launch(self, place, arrays)

    again: list[Tensor] = []
    monkeypatch.setattr(layer_forward.Prepared, "_launch", meanwhile)
    found = repeat(prepacked, inputs[0])
    assert during[0] != during[1]
    assert during[0] == during[2] == during[3]
    assert all(map(torch.equal, found, expected[0]))
    assert all(map(torch.equal, again, expected[1]))
    with ThreadPoolExecutor(4) as pool:
        for results, wanted in zip(pool.map(lambda x: repeat(prepacked, x), inputs), expected, strict=True):
            assert all(map(torch.equal, results, wanted))


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
