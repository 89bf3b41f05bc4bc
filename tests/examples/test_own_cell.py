"""examples/own_cell.py: that both models stay together, what it prints, and the answers to mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

import fastrnn
from fastrnn.cells.library import peephole_lstm
from tests.examples.programs import FOLDER, load_script

own_cell = load_script(FOLDER / "own_cell.py")
SMALL = ["--hidden", "5", "--batch", "3", "--length", "7", "--steps", "4", "--threads", "1"]


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_its_cell_is_the_librarys() -> None:
    given = (torch.randn(2, 4, 3), torch.randn(2, 4, 3), tuple(torch.randn(2, 2, 3)), tuple(torch.randn(3, 3)))
    torch.testing.assert_close(own_cell.peephole.step(*given), peephole_lstm.step(*given))


def test_both_learn_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with fastrnn.use_backend("reference"):
        own_cell.main(SMALL)
    out = capsys.readouterr().out
    rows = re.findall(r"^ +\d+ +([\d.]+) +([\d.]+)$", out, re.MULTILINE)
    assert len(rows) == 4
    assert all(abs(float(loop) - float(ours)) <= 1e-4 for loop, ours in rows)
    assert len(set(rows)) > 1
    assert re.search(r"fastrnn trains this cell at [\d.]+ times the loop's speed\n$", out)


def test_losses_that_part_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_cell.Loop, "forward", lambda self, x: (x.new_ones(*x.shape[:2], 5) * self.p_i, None))
    with fastrnn.use_backend("reference"), pytest.raises(SystemExit, match="own_cell: the losses differ by"):
        own_cell.main(SMALL)


def test_a_batch_is_numbers_marks_and_the_sum_of_the_marked() -> None:
    x, sums = own_cell.batch(6, 4, torch.Generator().manual_seed(0))
    assert x.shape == (6, 4, 2)
    assert (x[..., 1].sum(0) == 2).all()
    torch.testing.assert_close(sums, torch.stack([x[:, b, 0][x[:, b, 1] == 1].sum() for b in range(4)]))


@pytest.mark.parametrize(("option", "low"), [("steps", 1), ("length", 2), ("threads", 1)])
def test_numbers_that_are_too_small(option: str, low: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        own_cell.main([f"--{option}", "0"])
    assert f"--{option} must be at least {low}, got 0" in capsys.readouterr().err
