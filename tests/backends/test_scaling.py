"""How calls' times grow with the work: the larger cases are larger, and one thread is one thread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import scaling as command
from benchmarks.cases import Case, Problem, parse_shape
from benchmarks.contenders import FastRNN

TINY = ["--cells", "gru", "--modes", "training", "--shapes", "3x2x5", "--backend", "reference", "--budget", "0.01"]


def test_everything_measured_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scaling.json"
    assert command.main([*TINY, "--json", str(path)]) == command.OK
    assert "3x2x5x5" in capsys.readouterr().out
    (result,) = json.loads(path.read_text())["results"]
    assert result["shape"] == {"T": 3, "B": 2, "I": 5, "H": 5}
    assert all(result[name]["median"] > 0 for name in ("seconds", *command.RATIOS))


def test_what_takes_as_long_as_its_work_and_one_thread_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()

    class Elapsing:
        """A clock that only runs in `run`, as long as the case has numbers, twice that on one thread."""

        now = 0.0

    def build(contender: FastRNN, problem: Problem) -> Any:
        def run() -> None:
            shape = problem.case.shape
            Elapsing.now += shape.T * shape.B * 1e-4 * (1 if torch.get_num_threads() > 1 else 2)

        return run

    def burst(function: Any, calls: int) -> float:
        before = Elapsing.now
        for _ in range(calls):
            function()
        return Elapsing.now - before

    monkeypatch.setattr(FastRNN, "build", build)
    monkeypatch.setattr(command.timing, "wall_burst", burst)
    monkeypatch.setattr(command.timing.interleave, "__defaults__", (burst, lambda: Elapsing.now, 0.0))
    torch.set_num_threads(2)
    try:
        result = command.measure_case(Case("lstm", "inference", parse_shape("10x4x8")), "auto", 0.01)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert [round(ratio.median, 6) for ratio in result.ratios.values()] == [2, 2, 2]
    assert tuple(result.ratios) == command.RATIOS


@pytest.mark.parametrize("wrong", [["--cells", "srnn"], ["--shapes", "3x0x5"], ["--json", "/nowhere/at/all.json"]])
def test_wrong_arguments_say_so(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*TINY, *wrong]) == command.USAGE_ERROR
    assert "error" in capsys.readouterr().err
