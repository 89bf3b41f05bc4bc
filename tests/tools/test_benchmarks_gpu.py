"""`python -m benchmarks.gpu` where there is no GPU: planted faults cost no more than themselves, and the dry run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cases import Case, Shape
from benchmarks.contenders import FastRNN, NotServed
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import cells, race, smoke
from benchmarks.gpu.figures import BASELINE
from benchmarks.gpu.stages import NAMES, Stage
from benchmarks.gpu.summary import read, summary
from benchmarks.gpu.workers import Job, run, run_together
from fastrnn import backends
from fastrnn.backends.triton import configurations, scan, steps
from fastrnn.cells.compiler import linearity
from tests.backends import cuda_host
from tests.random_layers import any_layer
from tests.tools.benchmark_fakes import PNG_SIGNATURE

SECONDS = 60.0
"""Far more than any of these jobs takes."""


def job(*names: str, name: str = "job", silence: float = 10.0) -> Job:
    return Job(name, "tests.tools.gpu_planted", {"names": names}, silence=silence)


def records(*jobs: Job, seconds: float = SECONDS) -> list[dict[str, Any]]:
    taken: list[dict[str, Any]] = []
    run_together(jobs, time.monotonic() + seconds, taken.append)
    return taken


def test_a_case_that_raises_is_told_and_the_next_one_runs() -> None:
    told = records(job("fine 1", "raises", "fine 2"))
    assert [row["case"] for row in told] == ["fine 1", "raises", "fine 2"]
    assert told[1]["failed"] == "ValueError: planted"
    assert told[2]["value"] == 1


def test_a_case_in_which_the_process_dies_is_named_and_the_next_one_runs() -> None:
    told = records(job("fine 1", "dies 1", "fine 2", "dies 2", "fine 3"))
    assert [row["case"] for row in told] == ["fine 1", "dies 1", "fine 2", "dies 2", "fine 3"]
    assert "(3)" in told[1]["failed"]
    assert told[1]["log"][-1] == "last words"


def test_a_case_that_hangs_is_named_ended_and_the_next_one_runs() -> None:
    told = records(job("hangs", "fine", silence=4))
    assert [row["case"] for row in told] == ["hangs", "fine"]
    assert "did not end" in told[0]["failed"]


def test_rubbish_is_no_record() -> None:
    told = records(job("prints rubbish", "fine"))
    assert [(row["case"], row["value"]) for row in told] == [("prints rubbish", 2), ("fine", 1)]


def test_what_a_job_started_does_not_outlive_it() -> None:
    (told,) = records(job("leaves children"))
    deadline = time.monotonic() + SECONDS
    while is_running(told["child"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(told["child"])


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"  # nobody may reap it


def test_the_deadline_ends_a_job_and_what_was_finished_is_there() -> None:
    told = records(job("fine", "hangs", silence=SECONDS), seconds=5)
    assert [row["case"] for row in told] == ["fine", "hangs"]
    assert "time was over" in told[1]["failed"]


def test_a_module_that_cannot_be_imported_is_one_failure() -> None:
    told: list[dict[str, Any]] = []
    run(Job("job", "tests.no_such_module"), time.monotonic() + SECONDS, told.append)
    (row,) = told
    assert "ModuleNotFoundError" in row["log"][-1]


def test_a_fault_in_one_job_costs_the_others_nothing() -> None:
    told = records(job("hangs", name="bad", silence=4), job("fine", name="good"))
    assert {row["job"]: "failed" in row for row in told} == {"bad": True, "good": False}


def test_each_stage_has_a_file_and_failures_give_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(name: str, *cases: str) -> Stage:
        return Stage(name, 30, lambda dry: [job(*cases)])

    monkeypatch.setattr(command, "STAGES", (stage("machine", "fine"), stage("race", "raises", "fine")))
    assert command.main(["--out", str(tmp_path), "--minutes", "1"]) == 1
    found = read(tmp_path)
    assert {name: len(rows) for name, rows in found.items()} == {"machine": 1, "race": 2}
    assert "planted" in capsys.readouterr().out
    assert command.main(["--out", str(tmp_path), "--minutes", "1", "--stages", "machine"]) == 1  # race's file is there


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "race.jsonl").write_text('{"case": "one"}\n{"case": "tw')
    assert read(tmp_path) == {"race": [{"case": "one"}]}


def test_the_command_line_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path), "--stages", "rase"]) == 2
    assert "unknown stage 'rase'" in capsys.readouterr().err
    assert command.main(["report", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(("cell", "units", "serves"), [("lstm", 64, True), ("lstm", 640, False), ("gru", 128, True)])
def test_triton_races_where_one_launch_computes_all_steps(
    cell: str, units: int, serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FastRNN, "build", lambda racer, problem: racer.backend)
    problem = race.make_problem(Case(cell, "training", Shape(2, 2, 4, units), "bfloat16"))
    if serves:
        assert race.Persistent().build(problem) == "triton"
    else:
        with pytest.raises(NotServed, match="launched for each step"):
            race.Persistent().build(problem)


def test_a_layer_that_should_be_served_and_is_not_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(smoke.smokes("cuda block", ["lstm"], ["bfloat16"], small=True))
    for reason, fine in (("it has no recurrent dropout yet", True), ("CUDA: out of memory", False)):
        monkeypatch.setattr(backends.module("cuda"), "supports", lambda layer, reason=reason: reason)
        row = smoke.run(case, "cpu")
        assert row == ({"ok": None, "reason": reason} if fine else {"failed": f"not served: {reason}"})
        assert summary({"smoke": [{"case": str(case), **row}]})[1] is fine


def test_the_other_cells_reach_their_kernels() -> None:
    """By the layers that stage smoke tries: a scan, one launch with means, and several warps."""
    tried = {cell: list(smoke.smokes("triton", [cell], ["bfloat16"], small=False)) for cell in smoke.OTHERS}
    scanned = [one for one in tried["mingru"] if one.shape.steps > 100]
    assert scanned
    for one in scanned:
        layer = any_layer(smoke.cell_of("mingru"), one.shape)
        assert layer.cell.program is not None
        assert scan.chunk_steps(layer, linearity.forward(layer.cell.program), moved=32) is not None
    with_means = [any_layer(smoke.cell_of("layer_norm_lstm"), one.shape) for one in tried["layer_norm_lstm"]]
    widths = {configurations.padded(layer.hidden_size) for layer in with_means}
    rows = [configurations.row_of(with_means[0].cell_name, "16 bit", width) for width in widths]
    assert any(row is not None and row.backward is not None for row in rows)
    assert max(steps.tile_of(layer)[2] for layer in with_means) > 1
    assert any(one.recompute for one in tried["slstm"])


@pytest.mark.exhaustive
def test_the_dry_run_walks_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--dry-run", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    found = read(tmp_path)
    assert found.keys() == set(NAMES)
    right = {row["case"].split()[0] for row in found["smoke"] if row["ok"]}
    assert right == ({"triton"} if cuda_host.missing() else {"triton", "cuda"})
    assert json.loads(json.dumps(found)) == found


def point(base: float, ours: dict[str, float], mode: str = "training") -> dict[str, Any]:
    times = {name: {"graph": [value, value, value]} for name, value in {BASELINE: base, **ours}.items()}
    case = {"cell": "lstm", "mode": mode, "shape": [2, 3, 4, 64], "dtype": "float16"}
    return {"case": "a point", "point": case, "times": times}


@pytest.mark.parametrize(
    ("change", "fine", "times"),
    [
        (lambda row: row, True, "200 2.00 0.50 | - - -"),
        (lambda row: {**row, "failed": "planted"}, False, "200 2.00 0.50 | - - -"),
        (
            lambda row: {**row, "times": row["times"] | {"cuda grid": {"failed": "planted"}}},
            False,
            "200 2.00 bad | - - bad",
        ),
    ],
    ids=["ok", "bad", "one racer bad"],
)
def test_the_summary_of_a_race(change: Callable[[dict[str, Any]], dict[str, Any]], fine: bool, times: str) -> None:
    rows = [change(point(200.0, {"triton": 100.0, "cuda grid": 400.0}))]
    text, is_fine = summary({"race": rows})
    assert is_fine is fine
    assert f"lstm training 2x3x4x64 float16: {times}" in text


def test_where_auto_is_not_the_fastest_is_told() -> None:
    text, _ = summary({"race": [point(100.0, {"triton": 50.0, "auto": 80.0}), point(100.0, {"auto": 102.0})]})
    assert "auto is not the fastest at 1 of 4" in text
    assert '("lstm",), ("float16",), units=64, batch=3, steps=2, training=True  # graph: triton 2.00, auto 1.25' in text


def test_the_report_has_a_table_and_a_picture(tmp_path: Path) -> None:
    rows = [point(200.0, {"triton": 100.0, "cuda grid": 400.0}, mode) for mode in ("training", "inference")]
    (tmp_path / "race.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert command.main(["report", str(tmp_path)]) == 0
    table = (tmp_path / command.TABLES).read_text()
    assert "| lstm 2x3x4x64 float16 | 200 | 2.00 | 0.50 |" in table
    assert "| training, the best kernel | 2.00, 2.00 |" in table
    assert (tmp_path / command.PICTURE).read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize("point", cells.POINTS, ids=lambda point: point.label)
def test_cells_beside_the_loop(point: cells.Point) -> None:
    racers = [*cells.RACERS[:1], race.Racer("auto", cells.Trained("reference"))]
    small = point._replace(shape=Shape(3, 2, 8, 8), device="cpu", dtype="float32")
    row = cells.run(small, racers)
    text, is_fine = summary({"cells": [{"case": point.label, **row}]})
    assert is_fine
    assert row["times"]["loop"]["eager"][0] > 0
    assert f"{point.label}: loop - | " in text
    assert ", auto - | " in text


def test_a_cell_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(cells.Trained):
        def build(self, problem: cells.Problem) -> Any:
            right = super().build(problem)
            return lambda: [1.1 * tensor for tensor in right()]

    small = cells.POINTS[0]._replace(shape=Shape(3, 2, 8, 8), device="cpu")
    row = cells.run(small, [*cells.RACERS[:1], race.Racer("triton", Wrong("reference"))])
    assert row["times"]["triton"].keys() == {"failed"}
    assert "y differs from the loop" in summary({"cells": [{"case": "one", **row}]})[0]


def test_a_wrong_result_is_a_failure() -> None:
    row = {"case": "cuda forward lstm bfloat16", "share": 3.0}
    text, is_fine = summary({"smoke": [row | {"ok": False, "wrong": "h_n"}]})
    assert not is_fine
    assert "smoke: 1 cases, 1 failed" in text
    assert summary({"smoke": [row | {"ok": True}, row | {"ok": None}]})[1]
