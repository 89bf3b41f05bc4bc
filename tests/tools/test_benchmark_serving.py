"""benchmarks.serving: everybody computes the same, with carried states, before it is timed; and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.peers import contender as peers
from benchmarks.serving import __main__ as command
from benchmarks.serving import contenders, files, measure, options, report, worker
from benchmarks.serving.contenders import LATENCY, NAME, OPTIONS, SLOTS, Contender
from benchmarks.serving.measure import PAUSED, ROW, TOLERANCES, Row, best_peer
from benchmarks.serving.points import Point, make_task, truth
from benchmarks.serving.task import FLOAT16, FLOAT32, INT8, WEIGHTS
from tests.tolerances import DROP_IN, relative_error
from tests.tools.benchmark_fakes import PNG_SIGNATURE, FakeClock

pytestmark = pytest.mark.skipif(not peers.can_stop(), reason="this system cannot stop a process")

TINY = ["--cells", "gru", "--sizes", "5", "--weights", "float32", "--threads", "1", "--budget", "0.05"]
Race = Callable[..., None]


def fake(engine: str, is_ours: bool = False, takes_rows: bool = False) -> Contender:
    path = f"tests.tools.serving_fakes:{engine}"
    name = "ours" if is_ours else engine
    return Contender(contenders.TORCH, name, path, {FLOAT32: ("gru",)}, is_ours, takes_rows)


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Race:
    """Has these take everybody's place."""

    def enter(*latency: Contender, slots: Sequence[Contender] = ()) -> None:
        monkeypatch.setattr(options, "LATENCY", latency)
        monkeypatch.setattr(options, "SLOTS", slots)

    return enter


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def row(contender: str, median: float, weights: str = FLOAT32, threads: int = 1, **more: Any) -> Row:
    point, is_ours = more.get("point", Point("lstm", 64)), contender in ("ours", NAME)
    times = (median, median, median, 2 * median)
    return Row(point, contender, is_ours, weights, threads, more.get("condition", ROW.name), 10, *times, 0.0)


def test_everybody_is_measured(race: Race, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    race(fake("bound"), fake("bound", is_ours=True))
    assert command.main([*TINY, "--chunks", "1x1,3x2", "--json", str(path)]) == 0
    assert "gru 3x2x5" in capsys.readouterr().out
    entries = json.loads(path.read_text())["entries"]
    assert [(one["point"]["T"], one["contender"]) for one in entries] == [
        (T, name) for T in (1, 3) for name in ("bound", "ours")
    ]
    for entry in entries:
        assert list(entry["times"]) == [condition.name for condition in measure.CONDITIONS]
        assert entry["error"] < peers.TOLERANCE
        for times in entry["times"].values():
            assert 0 < times["q1"] <= times["median"] <= times["q3"] <= times["p99"]
            assert times["calls"] >= measure.ROUNDS
    for peer, ours in zip(entries[::2], entries[1::2], strict=True):
        for condition, times in ours["times"].items():
            assert "ratio" not in peer["times"][condition]
            assert times["ratio"] == pytest.approx(peer["times"][condition]["median"] / times["median"], rel=1e-3)
            assert times["best_peer"] == "bound, float32, 1"


def test_some_of_many_streams(
    race: Race, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "figures.json"
    race(slots=[fake("Gathered", takes_rows=True), fake("bound", is_ours=True)])
    point = Point("gru", 5, 1, 3, 1, slots=7)
    monkeypatch.setattr(options, "slot_points", lambda _: [point])
    assert command.main([*TINY, "--json", str(path)]) == 0
    assert "gru 1x3 of 7x5" in capsys.readouterr().out
    rows, _, _ = files.read(path)
    assert [(one.contender, one.condition) for one in rows] == [("Gathered", ROW.name), ("ours", ROW.name)]
    assert report.steps_a_second(rows[0]) == pytest.approx(3 / rows[0].median)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("slightly_wrong", "differs from torch.nn in float64 by 0.00"),
        ("writes_nothing", "differs from torch.nn in float64 by 1, allowed 0.0001"),
        ("forgetful", "differs from torch.nn in float64 by 0."),
        ("failing", "failing: times: ArithmeticError: no more"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_who_errs_is_named_and_the_others_are_measured(
    race: Race, engine: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    race(fake(engine), fake("bound"))
    assert command.main([*TINY, "--conditions", "row", "--json", str(path)]) == 1
    assert message in capsys.readouterr().out
    document = json.loads(path.read_text())
    assert [one["contender"] for one in document["entries"]] == ["bound"]
    assert len(document["failures"]) == 1
    assert document["failures"][0].startswith(f"gru 1x1x5: {engine}, float32, 1 threads: ")


def test_the_truth_of_rows_is_that_of_each_stream_by_itself() -> None:
    point = Point("lstm", 3, 2, 2, layers=2, slots=4)
    task = make_task(point, FLOAT32, 1, takes_rows=True)
    assert task.rows is not None
    module = nn.LSTM(3, 3, 2).double()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in task.parameters.items()})
    found = truth(point, task)
    for stream in range(point.slots):
        places = [(call, place) for call, place in np.argwhere(task.rows == stream)]
        assert len(places) > 1
        x = torch.cat([torch.from_numpy(task.x[call, :, place]) for call, place in places]).double()
        expected = module(x)[0].detach()
        got = torch.cat([found[call, :, place] for call, place in places])
        assert relative_error(got, expected) < DROP_IN


REAL = [
    pytest.param(point, contender, weights, id=f"{point.label}-{contender.name}-{weights}")
    for table, chosen in (
        (LATENCY, (Point("lstm", 24), Point("gru", 24, 3, 2, layers=2), Point("lstm", 24, 3))),
        (SLOTS, (Point("lstm", 24, 1, 3, slots=7),)),
    )
    for point in chosen
    for contender in table
    for weights, cells in contender.cells.items()
    if point.cell in cells
]


@pytest.mark.parametrize(("point", "contender", "weights"), REAL)
def test_the_libraries_compute_the_same(point: Point, contender: Contender, weights: str) -> None:
    absent = contenders.missing(contender.option)
    if absent:
        pytest.skip(f"without {', '.join(absent)}")
    task = make_task(point, weights, 1, contender.takes_rows)
    here = worker.Worker(contender.engine)
    here.build("key", task)
    expected = truth(point, task)
    for _ in range(2):  # from zero states again
        found = torch.from_numpy(here.outputs("key")).reshape(expected.shape)
        assert relative_error(found, expected) < TOLERANCES[weights]


def test_calls_come_in_turn_and_are_timed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(worker.time, "perf_counter", clock)
    calls = cycle([clock.function("first", 1.0), clock.function("second", 3.0)])
    assert worker.in_a_row(calls, 4.5) == [1.0, 3.0, 1.0]
    assert clock.calls == ["first", "second", "first"]


def test_the_pause_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(worker.time, "perf_counter", clock)
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: clock.function("sleep", seconds)())
    assert worker.paused(cycle([clock.function("call", 1.0)]), 15.0, 10.0) == [1.0, 1.0]
    assert clock.calls == ["sleep", "call", "sleep", "call"]


def test_who_is_the_best_peer() -> None:
    ours = {(w, n): row("ours", 1.0, w, n) for w in WEIGHTS for n in (1, 2)}
    one, two = row("one", 5.0), row("two", 4.0, threads=2)
    others = [row("elsewhere", 0.1, point=Point("gru", 64)), row("paused", 0.1, condition=PAUSED.name)]
    rows = [*ours.values(), one, two, *others]
    for weights in WEIGHTS:
        assert best_peer(ours[weights, 1], rows) is one
        assert best_peer(ours[weights, 2], rows) is two
    int8 = row("int8", 4.5, INT8)
    rows.append(int8)
    assert best_peer(ours[INT8, 1], rows) is int8
    assert best_peer(ours[INT8, 2], rows) is two
    assert best_peer(ours[FLOAT16, 1], rows) is one
    assert best_peer(ours[FLOAT32, 1], [ours[FLOAT32, 1]]) is None


def test_what_is_written_is_read_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(NAME, H * 1e-7, point=Point("lstm", H)) for H in (64, 128)]
    rows += [row("peer", H * 1e-6, point=Point("lstm", H)) for H in (64, 128)]
    rows += [row("ours", 1e-5, INT8, point=Point("lstm", 64, B=B, slots=9)) for B in (2, 4)]
    where = {"cpu": "a processor", "cpu_capability": "AVX2", "cores": 2, "packages": {"torch": "2"}}
    written, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    files.write(written, rows, [], where)
    assert files.read(written) == (rows, [], where)
    assert command.main(["--read", str(written), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "fastest peer / fastrnn.stream" in out
    assert out.count("10.00") == 4  # of two points, in two tables
    assert picture.read_bytes().startswith(PNG_SIGNATURE)
    written.write_text("{}")
    assert command.main(["--read", str(written)]) == 2


def jobs(*arguments: str) -> list[options.Job]:
    return options.jobs_of(options.build_parser().parse_args(arguments))


def test_what_is_measured_by_default() -> None:
    everything = jobs()
    single = {job.point: job.entries for job in everything if not job.point.slots}
    assert {point.H for point in single if point == Point("lstm", point.H)} == {64, 96, 128, 256, 512, 1024}
    assert {entry.weights for entry in single[Point("lstm", 1024)]} == {INT8}
    assert {entry.weights for entry in single[Point("lstm", 512)]} == set(WEIGHTS)
    assert {entry.threads for entry in single[Point("lstm", 64)]} == {1}
    assert {entry.threads for entry in single[Point("lstm", 256)]} == {1, 2}
    assert {entry.threads for entry in single[Point("gru", 256)]} == {1}
    assert {job.point.B for job in everything if job.point.slots} == set(options.AT_A_TIME)
    assert len(jobs("--quick")) < len(everything) / 3
    assert [job.point for job in jobs("--cells", "gru", "--chunks", "8x1", "--sizes", "32")] == [Point("gru", 32, 8)]
    assert {entry.contender.option for entry in jobs("--contenders", "torch")[0].entries} == {"torch"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "lstn"], "unknown cell 'lstn'"),
        (["--contenders", "jax"], f"unknown contender 'jax'; expected one of {', '.join(OPTIONS)}"),
        (["--chunks", "8"], "--chunks: expected TxB, as 8x1, got '8'"),
        (["--sizes", "0"], "--sizes: must be at least 1, got 0"),
        (["--at-a-time", "1001"], "--at-a-time: there are 1000 streams"),
        (["--cells", "rnn_tanh", "--contenders", "torch", "--weights", "int8"], "none of the contenders serves"),
        (["--read", "nowhere.json"], "No such file"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err
