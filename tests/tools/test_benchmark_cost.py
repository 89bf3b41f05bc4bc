"""`python -m benchmarks.cost`: points, files of times, the fit, and what is said of the choice; nothing is timed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.command_line import OK, USAGE_ERROR, UsageError
from benchmarks.cost import __main__ as command
from benchmarks.cost import fitting, judging, measuring, race, tables
from benchmarks.cost.measuring import Timed, measure, read
from benchmarks.cost.points import CELL_NAMES, DTYPES, PRODUCTS, Point, drawn_points, grid, planned
from benchmarks.timing import Timing
from fastrnn.__main__ import package_version
from fastrnn.backends import cost

TINY = Point("gru", False, 3, 2, 4, 8, 1)
GRU_ROWS = (
    "numba training: gru float32",
    "numba step, training: gru float32",
    "aten sequence, training: gru float32",
    "aten step, training: gru float32",
)


def grus(count: int) -> list[Point]:
    """Points of the four rows above, not too large."""
    points = (p for p in drawn_points(5, [1, 2], {"float32": 1.0}) if p.cell == "gru" and p.training)
    return list(islice(points, count))


@pytest.fixture
def four_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "names", lambda: iter(GRU_ROWS))


def synthetic(count: int) -> tuple[dict[str, list[float]], list[Timed]]:
    """Coefficients, and times by them that a busy machine lengthened, those of a point alike."""
    draw = np.random.default_rng(0)
    usual = np.array([3e-4, 1e-4, 2e-5, 4e-11, 0, 0, 5e-11, 1e-11, 2e-10, 1e-11, 0, 1e-9, 0, 1e-10, 0, 1e-10])
    table = {name: (usual * draw.uniform(0.4, 2, len(usual))).tolist() for name in GRU_ROWS}
    timed = []
    for point in grus(count):
        busy = draw.lognormal(0, 0.3)
        seconds = {e: s * busy * draw.lognormal(0, 0.01) for e, s in tables.predicted(table, point.sizes).items()}
        timed.append(Timed(point, seconds))
    return table, timed


def test_the_fit_finds_the_choice_again(four_rows: None) -> None:
    table, timed = synthetic(250)
    found = fitting.fitted(timed[:150])
    assert found.keys() == table.keys()
    assert min(min(row) for row in found.values()) >= 0
    regrets = [judging.regret(one.seconds, tables.predicted(found, one.point.sizes)) for one in timed[150:]]
    assert np.mean(regrets) < 0.004
    assert max(regrets) < 0.1
    alone = [one.seconds["numba"] / min(one.seconds.values()) - 1 for one in timed[150:]]
    assert np.mean(alone) > 0.02, "the choice must matter here"


def test_too_few_points_are_told(four_rows: None) -> None:
    with pytest.raises(UsageError, match=r"points of '.* step, training: gru float32', 8 are needed"):
        fitting.fitted([one for one in synthetic(40)[1] if one.point.T > 1])


def test_a_dtype_without_points_is_as_float32_and_one_with_few_leans_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    doubles = tuple(name.replace("float32", "float64") for name in GRU_ROWS)
    monkeypatch.setattr(fitting, "names", lambda: iter(GRU_ROWS + doubles))
    timed = synthetic(100)[1]
    found = fitting.fitted(timed)
    assert all(found[double] == found[single] for double, single in zip(doubles, GRU_ROWS, strict=True))
    twice = Timed(timed[0].point._replace(dtype="float64"), {e: 2 * s for e, s in timed[0].seconds.items()})
    found = fitting.fitted([*timed, twice])
    both = [np.array(found[name]) for name in (doubles[0], GRU_ROWS[0])]
    assert not np.array_equal(*both)
    assert not both[0][both[1] == 0].any(), "terms that float32 has not"


def test_least_squares_above_zero() -> None:
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert fitting.non_negative(matrix, np.array([3.0, 5.0, 7.0])) == pytest.approx([1, 2])
    assert fitting.non_negative(matrix, np.array([3.0, 2.0, 1.0])) == pytest.approx([2, 0])  # [4, -1] without the bound
    assert fitting.non_negative(matrix * [1, 0], np.array([1.0, 1.0, 1.0])) == pytest.approx([1, 0])
    draw = np.random.default_rng(1)
    matrix, target = draw.random((30, 6)), draw.normal(size=30)
    found = fitting.non_negative(matrix, target)
    slope = matrix.T @ (matrix @ found - target)
    assert found.min() >= 0
    assert slope == pytest.approx(np.where(found > 0, 0, np.maximum(slope, 0)), abs=1e-6)


def test_points_are_those_that_fit_and_of_every_kind() -> None:
    corners = set(grid([1, 2]))
    points = list(islice(planned(3, [1, 2]), 3 * len(corners)))
    assert points[:50] == list(islice(planned(3, [1, 2]), 50))
    assert max(point.products for point in points) <= PRODUCTS
    assert corners <= set(points)
    for field, values in {"cell": CELL_NAMES, "dtype": DTYPES, "threads": (1, 2), "directions": (1, 2)}.items():
        assert {getattr(point, field) for point in points} == set(values)
    assert all(point.T == 1 for point in points if point.is_cell)
    assert any(point.P for point in points)
    assert all(0 <= point.P < point.H and (point.cell == "lstm" or not point.P) for point in points)
    assert {row for point in points for row in cost.rows(point.sizes) if row.endswith("float32")} == {
        name for name in fitting.names() if name.endswith("float32")
    }
    assert next(drawn_points(3, [1])) != next(drawn_points(4, [1]))


def test_points_have_names() -> None:
    assert str(TINY) == "GRU inference 3x2x4x8 1 thread"
    other = Point("lstm", True, 1, 2, 4, 8, 2, "bfloat16", 2, 5)
    assert str(other) == "LSTM training 1x2x4x8 bfloat16 bidirectional projected to 5 2 threads"
    assert str(TINY._replace(is_cell=True, T=1)) == "GRUCell inference 1x2x4x8 1 thread"


def test_engines_take_turns_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one runs, `auto` would take it; the one that may choose goes by what is predicted."""
    preferred: list[str] = []

    def build(point: Point) -> Any:
        return lambda: preferred.append(judging.chosen(cost.predicted(point.sizes)))

    def interleave(racers: Sequence[Any], budget: float, warm_up: float) -> list[Timing]:
        assert torch.get_num_threads() == 1
        preferred.append("turns")
        for racer in racers:
            racer.turn(1, 2)
            racer()
        return [Timing([1.0], 1) for _ in racers]

    def usual(sizes: cost.Sizes) -> dict[str, float]:
        return {"numba": 2.0, "aten": 1.0}

    monkeypatch.setattr(race, "build", build)
    monkeypatch.setattr(race.timing, "interleave", interleave)
    monkeypatch.setattr(cost, "predicted", usual)
    race.race(TINY, [None, "numba", "aten"], 1.0)
    warm_up, turns = preferred[: preferred.index("turns")], preferred[preferred.index("turns") + 1 :]
    calls = race.WARM_UP_CALLS
    assert warm_up == ["aten"] * calls + ["numba"] * calls + ["aten"] * calls
    assert turns == ["aten"] * 4 + ["numba"] * 4 + ["aten"] * 4
    assert cost.predicted is usual


@pytest.mark.parametrize(
    "point",
    [
        TINY,
        Point("rnn_tanh", True, 3, 2, 4, 8, 1),
        Point("lstm", True, 3, 2, 4, 8, 1, "float64", directions=2, P=5),
        Point("lstm", True, 1, 2, 4, 8, 1, is_cell=True),
        Point("gru", False, 1, 2, 4, 8, 1, "bfloat16", is_cell=True),
    ],
    ids=str,
)
def test_points_are_built(point: Point) -> None:
    with point.grad_mode(), race.preferring("aten"):
        results = race.build(point)()
    rows = (point.B,) if point.is_cell else (point.T, point.B)
    first = results if isinstance(results, torch.Tensor) else results[0]
    if point.training:
        assert first.shape == (*rows, point.I)
        assert len(results) == 1 + point.directions * (5 if point.P else 4)
    else:
        assert first.shape == (*rows, point.directions * (point.P or point.H))
    assert first.dtype == getattr(torch, point.dtype)


@pytest.fixture
def raced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Point]]:
    """The points that were raced; nothing is timed."""
    points: list[Point] = []

    def fake(point: Point, engines: Sequence[str | None], budget: float) -> list[Timing]:
        points.append(point)
        return [Timing([2.0 + number, 1.0 + number, 9.0], 1) for number in range(len(engines))]

    monkeypatch.setattr(measuring, "race", fake)
    monkeypatch.setattr(judging, "race", fake)
    monkeypatch.setattr(measuring.gc, "freeze", lambda: None)
    return points


def test_a_measurement_is_taken_up_again(raced: list[Point], tmp_path: Path) -> None:
    file, said = tmp_path / "times.jsonl", []
    points = list(islice(planned(0, [1]), 5))

    def tell(count: int, point: Point) -> None:
        said.append((count, point))

    measure(points[:3], file, 1.0, tell)
    file.write_text(file.read_text() + '{"cell": "gru", "tr')  # it was killed
    measure(points, file, 1.0, tell)
    assert raced == points
    assert said == list(enumerate(points))
    where, timed = read(file)
    assert where["threads"] == torch.get_num_threads()
    assert [one.point for one in timed] == points
    assert timed[0].seconds == {"numba": 1.0, "aten": 2.0}


def test_time_is_limited(raced: list[Point], tmp_path: Path) -> None:
    measure(planned(0, [1]), tmp_path / "times.jsonl", 1e-9, lambda count, point: None)
    assert raced == []


def test_a_file_of_another_machine_or_of_something_else_is_refused(raced: list[Point], tmp_path: Path) -> None:
    file = tmp_path / "times.jsonl"
    measure([TINY], file, 1.0, lambda count, point: None)
    first, *others = file.read_text().splitlines()
    where = json.loads(first)
    # Another commit of this package, or another load, is no other machine.
    where |= {"load": 99.0, "commit": "1234", "packages": where["packages"] | {"fastrnn": "9"}}
    file.write_text("\n".join([json.dumps(where), *others]) + "\n")
    measure([TINY], file, 1.0, lambda count, point: None)
    file.write_text(json.dumps(where | {"cpu": "abacus"}) + "\n")
    with pytest.raises(UsageError, match="abacus"):
        measure([TINY], file, 1.0, lambda count, point: None)
    file.write_text("times\n")
    with pytest.raises(UsageError, match="has no times of"):
        read(file)


def judged(auto: Sequence[float], numba: Sequence[float], aten: Sequence[float]) -> judging.Judged:
    return judging.judged(TINY, [Timing(list(seconds), 1) for seconds in (auto, numba, aten)])


def test_auto_is_judged_turn_by_turn_by_the_better_engine() -> None:
    found = judged(auto=[2.2, 4.4, 1.1], numba=[2.0, 4.0, 1.0], aten=[3.0, 3.0, 3.0])
    assert found.behind == pytest.approx(0.1)
    assert found.seconds == {"auto": 2.2, "numba": 2.0, "aten": 3.0}
    assert judged(auto=[1.0, 1.0], numba=[3.0, 3.0], aten=[2.0, 2.0]).behind == pytest.approx(-0.5)


def test_a_miss_is_seen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[float] = []

    def fake(point: Point, engines: Sequence[str | None], budget: float) -> list[Timing]:
        assert engines == [None, "numba", "aten"]
        budgets.append(budget)
        return [Timing([seconds], 1) for seconds in (1.2 if len(budgets) == 1 else 1.01, 1.0, 5.0)]

    monkeypatch.setattr(judging, "race", fake)
    assert judging.judge(TINY).behind == pytest.approx(0.01)
    assert len(budgets) == 2
    assert judging.judge(TINY).behind == pytest.approx(0.01)
    assert len(budgets) == 3
    assert budgets[1] > budgets[0] == budgets[2]


def test_regrets_and_their_summary() -> None:
    seconds = {"numba": 3.0, "aten": 2.0}
    assert judging.regret(seconds, {"numba": 1.0, "aten": 1.0}) == 0.5  # a tie is numba's
    assert judging.regret(seconds, {"numba": 1.0, "aten": 0.9}) == 0
    text = judging.summary([0.0, 0.04, 0.06, 0.5])
    assert text == "auto: behind the better engine by 50.0% at worst, 15.00% in the mean, beyond 5% in 2 of 4"


def test_the_command_fits_and_writes_what_the_package_reads(
    four_rows: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times, out = tmp_path / "times.jsonl", tmp_path / "cost.json"
    timed = synthetic(70)[1]
    monkeypatch.setattr(
        measuring, "race", lambda point, *_: [Timing([s[e]], 1) for e in cost.ENGINES for s in [known[point]]]
    )
    known = dict(timed)
    measure([one.point for one in timed], times, 1.0, lambda count, point: None)
    assert command.main(["fit", str(times), "--out", str(out)]) == OK
    written = json.loads(out.read_text())
    assert written["terms"] == list(cost.TERMS)
    assert written["machine"]["packages"]["torch"] == package_version("torch")
    assert written["seconds"].keys() == set(GRU_ROWS)
    said = capsys.readouterr().out
    assert all(name in said for name in GRU_ROWS)
    assert "each fifth of them by the others: behind the better engine by" in said
    assert "always aten: behind" in said


def test_the_command_judges(raced: list[Point], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["judge", "--points", "3", "--seed", "1", "--threads", "1"]) == OK
    assert set(raced) == set(islice(drawn_points(1, [1]), 3))
    said = capsys.readouterr().out
    assert "auto: behind the better engine by" in said
    assert "always numba:" in said


def test_wrong_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["fit", str(tmp_path / "none.jsonl")]) == USAGE_ERROR
    assert "none.jsonl" in capsys.readouterr().err
    assert command.main(["measure", str(tmp_path / "no" / "where.jsonl")]) == USAGE_ERROR
    assert "cannot write" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([])
