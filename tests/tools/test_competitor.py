"""Calls beside a busy program: the busy processes run when they should and end whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks import busy
from benchmarks import competitor as command
from benchmarks.busy import CompetitorEnded, Competitors
from benchmarks.cases import Case, parse_shape
from benchmarks.checkout import variables_of_children
from benchmarks.competitor import Result
from benchmarks.contenders import BASELINE, NotServed
from benchmarks.peers import rest
from tests.selection import exhaustive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TINY = ["--cells", "gru", "--shapes", "3x2x5", "--backends", "reference", "--rounds", "2", "--seconds", "0.02"]
PATIENCE_SECONDS = 10.0


def state_of(pid: int) -> str | None:
    return rest.state_of(Path(f"/proc/{pid}"))


def states(competitors: Competitors) -> set[str | None]:
    return {state_of(process.pid) for process in competitors.processes}


def wait_until_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if all(state_of(pid) in (None, "Z") for pid in pids):
            return True
        time.sleep(0.01)
    return False


def processor_seconds(pid: int) -> float:
    """That a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_they_compute_when_they_may_and_end_with_the_block() -> None:
    with Competitors(2) as competitors:
        first, second = (process.pid for process in competitors.processes)
        assert states(competitors) == {"T"}
        before = processor_seconds(first)
        with competitors.busy():
            assert states(competitors) == {"R"}
            deadline = time.monotonic() + PATIENCE_SECONDS
            while processor_seconds(first) < before + 0.05:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert states(competitors) == {"T"}
        used = processor_seconds(first)
        time.sleep(0.05)
        assert processor_seconds(first) == used
    assert (state_of(first), state_of(second)) == (None, None)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("while_busy", [False, True])
def test_they_end_with_an_exception(error: type[BaseException], while_busy: bool) -> None:
    competitors = Competitors(1)
    with pytest.raises(error), competitors, competitors.busy() if while_busy else nullcontext():
        raise error
    assert states(competitors) == {None}


def test_one_that_ended_is_noticed() -> None:
    competitors = Competitors(2)
    with pytest.raises(CompetitorEnded), competitors, competitors.busy():
        competitors.processes[1].kill()
    assert states(competitors) == {None}


def test_one_that_does_not_start_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "BUSY", "raise SystemExit")
    competitors = Competitors(2)
    with pytest.raises(CompetitorEnded), competitors:
        pass
    assert len(competitors.processes) == 2
    assert states(competitors) == {None}


MEASURING = """
import signal, sys
from benchmarks import competitor
signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have programs in the background ignore

def measure_case(case, contenders, competitors, *budget):
    with competitors.busy():
        print(*(process.pid for process in competitors.processes), flush=True)
        while True:
            pass

competitor.measure_case = measure_case
sys.exit(competitor.main([]))
"""


@pytest.mark.parametrize("ending", [*exhaustive(signal.SIGINT, signal.SIGTERM), signal.SIGKILL])
def test_they_end_with_the_process_that_measures(ending: signal.Signals) -> None:
    """By Ctrl-C, which a terminal sends to them, too, or by what leaves it no time to end them."""
    with subprocess.Popen(
        [sys.executable, "-c", MEASURING],
        env=variables_of_children(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as measuring:
        assert measuring.stdout is not None
        pids = [int(pid) for pid in measuring.stdout.readline().split()]
        assert pids
        if ending == signal.SIGINT:
            os.killpg(measuring.pid, ending)
        else:
            measuring.send_signal(ending)
        _, errors = measuring.communicate(timeout=PATIENCE_SECONDS)
    assert wait_until_gone(pids)
    if ending == signal.SIGINT:
        assert measuring.returncode == command.INTERRUPTED, errors
        assert errors.strip().endswith("interrupted")
        assert "Traceback" not in errors


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LIMIT", 1e9)
    started: list[subprocess.Popen[bytes]] = []
    start = busy.start
    monkeypatch.setattr(busy, "start", lambda: started.append(start()) or started[-1])
    figures = tmp_path / "figures.json"
    assert command.main([*TINY, "--json", str(figures)]) == command.OK
    assert len(started) == len(os.sched_getaffinity(0))
    assert all(process.returncode == -signal.SIGKILL for process in started)
    document = json.loads(figures.read_text())
    assert document["environment"]["cores"] == len(started)
    assert [result["contender"] for result in document["results"]] == ["torch.nn", "fastrnn reference", command.LONE]
    for result in document["results"]:
        assert (result["cell"], result["mode"]) == ("gru", "inference")
        assert result["shape"] == {"T": 3, "B": 2, "I": 5, "H": 5}
        for kind in ("quiet", "contended"):
            times = result[kind]
            assert times["calls"] >= 2, "one a round"
            assert 0 < times["q1"] <= times["median"] <= times["q3"] <= times["maximum"] < PATIENCE_SECONDS
        assert result["ratio"] == pytest.approx(result["contended"]["mean"] / result["quiet"]["median"])
        assert (result["slow_calls"], result["fails"]) == (0, False)
    shown = capsys.readouterr().out
    assert shown.count("3x2x5x5") == 3
    assert f"as many competitors as cores: {len(started)}" in shown


def test_calls_are_timed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    lasting = iter([0.25, 1.5, 0.125])

    def run() -> tuple[()]:
        nonlocal now
        now += next(lasting)
        return ()

    monkeypatch.setattr(command.time, "perf_counter", lambda: now)
    assert command.time_calls(run, 1.0) == [0.25, 1.5]
    assert command.time_calls(run, 0.001) == [0.125], "one at least"


def test_a_lone_thread_computes_as_long_as_it_is_told() -> None:
    before = time.thread_time()
    command.lone_thread(0.02)()
    assert time.thread_time() - before >= 0.02


@pytest.mark.parametrize(("slowest", "fails"), [(6.0, False), (6.3, True)])
def test_the_target(slowest: float, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fastrnn's to meet, whatever torch.nn does."""
    case = Case("lstm", "inference", parse_shape("1x1x3"))
    torchs = Result(case, BASELINE, False, [1.0, 1.0], [99.0])
    ours = Result(case, "fastrnn numba", True, [1.0, 0.5, 4.0], [2.0, slowest, 1.0])
    assert (ours.ratio, ours.slow_calls, ours.fails) == (pytest.approx(1 + slowest / 3), 1, fails)
    assert (torchs.slow_calls, torchs.fails) == (1, False)
    monkeypatch.setattr(command, "measure_case", lambda *arguments: [torchs, ours])
    assert command.main(TINY) == (command.FAILURE if fails else command.OK)


def test_what_cannot_be_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*arguments: object) -> list[Result]:
        raise NotServed("no such thing")

    monkeypatch.setattr(command, "measure_case", refuse)
    assert command.main(TINY) == command.FAILURE
    assert "no such thing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "lstn"], "unknown cell 'lstn'"),
        (["--modes", "streaming"], "unknown mode 'streaming'"),
        (["--shapes", "3x2"], "shape '3x2': expected TxBxH"),
        (["--backends", "numpy"], "unknown backend 'numpy'"),
        (["--json", "no/such/folder/a.json"], "--json: cannot write"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == command.USAGE_ERROR
    assert message in capsys.readouterr().err
