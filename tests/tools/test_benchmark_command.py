"""`python -m benchmarks`: from its command line to its tables, files and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import report, runner, timing
from benchmarks.cases import Case, Shape
from tests.tools.benchmark_fakes import BRIEF, PNG_SIGNATURE, TINY, Planted, nan_in_one_place


def test_each_step_is_a_case_once() -> None:
    options = command.build_parser().parse_args(["--shapes", "7x2x3", "9x2x3", "--modes", "streaming"])
    options.dtype = ["float32"]
    assert [case.shape for case in command.build_cases(options)] == [Shape(1, 2, 3, 3)] * len(options.cells)


def test_without_a_baseline_there_are_times_but_no_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    arguments = ["--cells", "gru", "--modes", "inference", "--shapes", TINY, "--resets", "0.4", "--no-memory"]
    files = ["--json", str(figures), "--plot", str(picture)]
    assert command.main([*arguments, "--backends", "reference", "--budget", str(BRIEF), *files]) == command.OK
    assert "TorchRL: not served: TorchRL's Triton kernels run on a GPU only" in capsys.readouterr().out
    document = json.loads(figures.read_text())
    baseline, ours = document["cases"][0]["contenders"]
    assert (baseline["contender"], baseline["status"]) == ("TorchRL", runner.NOT_SERVED)
    assert ours["seconds"]["median"] > 0
    assert "ratio" not in ours
    assert document["geometric_means"] == {}
    assert picture.read_bytes().startswith(PNG_SIGNATURE)


def test_a_case_from_command_line_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    arguments = ["--cells", "lstm", "--modes", "inference,training", "--shapes", TINY, "--backends", "reference,aten"]
    files = ["--json", str(figures), "--plot", str(picture)]
    assert command.main([*arguments, "--budget", str(BRIEF), "--no-memory", *files]) == command.OK

    shown = capsys.readouterr().out
    for word in ("lstm", "inference", "training", TINY, "fastrnn reference", "fastrnn aten", "geometric mean"):
        assert word in shown

    document = json.loads(figures.read_text())
    assert document["format"] == report.FORMAT
    assert {"date", "cpu", "threads", "packages", "commit"} <= set(document["environment"])
    assert document["options"]["backends"] == ["reference", "aten"]
    assert [case["mode"] for case in document["cases"]] == ["inference", "training"]
    for case in document["cases"]:
        assert case["shape"] == {"T": 3, "B": 2, "I": 4, "H": 5}
        baseline, *others = case["contenders"]
        assert baseline["contender"] == "torch.nn"
        assert "ratio" not in baseline
        for entry in others:
            assert entry["status"] == runner.MEASURED
            assert entry["allowance"] <= 1
            assert entry["rounds"] >= timing.MIN_ROUNDS
            expected = baseline["seconds"]["median"] / entry["seconds"]["median"]
            assert entry["ratio"]["median"] == pytest.approx(expected)
            assert 0 < entry["seconds"]["q1"] <= entry["seconds"]["median"] <= entry["seconds"]["q3"]
        assert (case["device"], case["resets"], case["tf32_allowed"]) == ("cpu", 0.0, False)
    assert set(document["geometric_means"]) == {"fastrnn reference", "fastrnn aten"}
    assert set(document["worst_cases"]["fastrnn aten"]) == {"lstm inference", "lstm training", "all"}
    assert "graph_geometric_means" not in document

    matplotlib = pytest.importorskip("matplotlib.image")
    assert picture.read_bytes().startswith(PNG_SIGNATURE)
    pixels = matplotlib.imread(picture)
    assert pixels.shape[0] > 100
    assert pixels.std() > 0


def test_a_failure_is_shown_and_makes_the_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "FastRNN", lambda name: Planted(nan_in_one_place))
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    arguments = ["--cells", "gru", "--modes", "inference", "--shapes", TINY, "--backends", "reference", "--no-memory"]
    files = ["--json", str(figures), "--plot", str(picture)]
    assert command.main([*arguments, "--budget", str(BRIEF), *files]) == command.FAILURE
    assert "ys differs from torch.nn in float64 by nan" in capsys.readouterr().out
    (case,) = json.loads(figures.read_text())["cases"]
    assert case["contenders"][1]["status"] == runner.FAILED
    assert "seconds" not in case["contenders"][1]
    assert picture.read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "lstn"], "unknown cell 'lstn'; expected one of rnn_tanh, rnn_relu, lstm, gru"),
        (["--cells", ","], "no cell given"),
        (["--modes", "eval"], "unknown mode 'eval'; expected one of inference, training"),
        (["--backends", "nunba"], "unknown backend 'nunba'; expected one of auto, "),
        (["--shapes", "100x64"], "shape '100x64': expected TxBxH or TxBxIxH"),
        (["--dtype", "float64"], "unknown dtype 'float64'; expected one of float32, bfloat16, float16, tf32"),
        (["--dtype", "float32,tf32"], "--dtype tf32: needs --device cuda"),
        (["--resets", "0.1", "--no-torchrl"], "--no-torchrl: with --resets everything is compared with TorchRL"),
        (["--modes", "streaming", "--bidirectional"], "--modes streaming: a sequence that comes step by step is not"),
        (["--modes", "streaming", "--resets", "0.1"], "--modes streaming: resets are within a sequence"),
        (["--modes", "cell", "--layers", "2"], "--modes cell: a cell is one layer"),
        (["--json", "no_such_folder/a.json"], "--json: cannot write no_such_folder/a.json"),
        (["--plot", "."], "--plot: cannot write ."),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == command.USAGE_ERROR
    shown = capsys.readouterr()
    assert message in shown.err
    assert not shown.out


@pytest.mark.parametrize(
    "arguments", [["--budget", "0"], ["--budget", "nan"], ["--threads", "0"], ["--layers", "x"], ["--resets", "1"]]
)
def test_wrong_numbers_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == command.USAGE_ERROR
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_a_backend_that_cannot_run_here_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastrnn.backends import reference

    monkeypatch.setattr(reference, "ready", lambda: "no such device")
    assert command.main(["--backends", "reference"]) == command.USAGE_ERROR
    assert "backend 'reference' cannot run here: no such device" in capsys.readouterr().err


def test_an_interruption_reports_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[Case] = []

    def interrupted(case: Case, *arguments: object) -> runner.CaseResult:
        if measured:
            raise KeyboardInterrupt
        measured.append(case)
        return runner.measure_case(case, [], BRIEF, with_memory=False)

    monkeypatch.setattr(command, "measure_case", interrupted)
    assert command.main(["--backends", "reference", "--cells", "gru", "--shapes", TINY]) == command.INTERRUPTED
    shown = capsys.readouterr()
    assert "interrupted after 1 of 2 cases" in shown.err
    assert TINY in shown.out
