"""benchmarks.own_cells: everybody computes the same, what is told, and JAX's part where it is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fastrnn
from benchmarks import own_cells
from benchmarks.cases import Shape
from benchmarks.peers.process import PeerProcess
from fastrnn.cells import Cell

TINY = ["--shapes", "3x2x4x5", "--budget", "0.01"]
cells = pytest.mark.parametrize("name", own_cells.CELLS)


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    """The cells are not worth compiling here."""
    threads = torch.get_num_threads()
    with fastrnn.use_backend("reference"):
        yield
    torch.set_num_threads(threads)


def test_everybody_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert own_cells.main([*TINY, "--no-jax", "--cells", "mgu,mingru", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "eager loop / fastrnn" in out
    mgu, mingru = json.loads(path.read_text())["results"]
    assert (mgu["cell"], mgu["shape"], mgu["floor"]) == ("mgu", [3, 2, 4, 5], None)
    assert mgu["seconds"]["fastrnn"]["median"] > 0
    assert set(mingru["ratios"]) == {own_cells.LOOP}
    assert isinstance(mingru["floor"], float)


def test_another_loop_where_torch_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert own_cells.main([*TINY, "--no-jax", "--cells", "layer_norm_lstm"]) == 0
    assert f"{own_cells.SCRIPT} / fastrnn" in capsys.readouterr().out


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = own_cells.loop
    monkeypatch.setattr(own_cells, "loop", lambda layer: lambda x: 1.001 * right(layer)(x))
    assert own_cells.main([*TINY, "--no-jax", "--cells", "mgu"]) == 1
    assert "mgu 3x2x4x5: eager loop: output differs from the reference by 0.001" in capsys.readouterr().out


def test_mistakes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_cells.main(["--cells", "lstm", "--no-jax"]) == 2
    assert "unknown cell 'lstm'; expected one of peephole_lstm" in capsys.readouterr().err
    monkeypatch.setattr(own_cells.importlib.util, "find_spec", lambda _: None)
    assert own_cells.main(TINY) == 2
    assert 'pip install "fastrnn[jax]"' in capsys.readouterr().err


@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
@cells
def test_jax_computes_the_same(name: str) -> None:
    cell: Cell = own_cells.CELLS[name]
    layer, x, dy = own_cells.layer_of(cell, Shape(3, 2, 4, 5))
    loop = own_cells.trained(own_cells.loop(layer), x, list(layer.parameters()), dy)
    for who, one in own_cells.PEERS.items():
        if who == own_cells.ASSOCIATIVE and name not in own_cells.LINEAR:
            continue
        process = PeerProcess(who, f"benchmarks.peers.jax_scan:{one}")
        try:
            process.ask("build", own_cells.task_of(layer, x, dy))
            own_cells.check({own_cells.LOOP: loop, who: own_cells.InAProcess(process)}, layer, x, dy)
        finally:
            process.close()
