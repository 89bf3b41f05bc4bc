"""benchmarks.peers: processes that answer, fail, die and hang; and the real libraries, where they are installed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import parity, runner, timing
from benchmarks.cases import MODES, MODULES, Case, Shape, make_problem
from benchmarks.checkout import ROOT
from benchmarks.contenders import FastRNN, NotServed, TorchNN
from benchmarks.peers import contender, rest
from benchmarks.peers.contender import PEERS, Peer
from benchmarks.peers.process import PeerFailed, PeerProcess
from tests.selection import exhaustive
from tests.tools.benchmark_fakes import BRIEF, PNG_SIGNATURE, TINY, tiny

pytestmark = pytest.mark.skipif(not contender.can_stop(), reason="this system cannot stop a process")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PEER_MODES = [mode for mode in MODES if mode != "training"]
SHORT_SECONDS = 2.0
"""A time-out: a process with a fake starts in a tenth of that."""
BUSY_ROUNDS = 2_000_000
"""Of a hash: 0.9 s."""


def fake(engine: str, timeout: float = 30.0) -> Peer:
    return Peer(PeerProcess(engine, f"tests.tools.peer_fakes:{engine}", timeout))


@pytest.fixture(scope="module")
def numpy_peer() -> Iterator[Peer]:
    peer = fake("WithNumPy")
    yield peer
    peer.close()


def state_of(pid: int) -> str | None:
    return rest.state_of(Path(f"/proc/{pid}"))


def wait_for_state(pid: int, *states: str | None) -> bool:
    """Whether the process comes into one of these states, T is stopped, Z dead, None gone, before long."""
    deadline = time.monotonic() + SHORT_SECONDS
    while time.monotonic() < deadline:
        if state_of(pid) in states:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("cell", ["lstm", *exhaustive(*(cell for cell in MODULES if cell != "lstm"))])
@pytest.mark.parametrize("mode", PEER_MODES)
def test_a_peer_is_measured_and_fastrnn_against_it(numpy_peer: Peer, cell: str, mode: str) -> None:
    case = Case(cell, mode, Shape(7 if mode == "inference" else 1, 3, 4, 5))
    result = runner.measure_case(case, [FastRNN("reference"), numpy_peer], BRIEF, with_memory=False)
    ours, peer = result.entries
    for entry in result.all_entries:
        assert entry.status == runner.MEASURED, entry.reason
        assert entry.seconds is not None
    assert (ours.is_peer, peer.is_peer) == (False, True)
    assert peer.ratio is not None
    assert peer.allowance is not None
    assert peer.allowance < 0.1
    assert (peer.best_peer, peer.peer_ratio) == (None, None)
    assert ours.best_peer == "WithNumPy"
    assert ours.peer_ratio is not None
    assert ours.seconds is not None
    assert peer.seconds is not None
    assert ours.peer_ratio.median == pytest.approx(peer.seconds.median / ours.seconds.median)
    assert result.baseline.peer_ratio is None


def test_the_memory_of_a_peer_is_not_measured(numpy_peer: Peer) -> None:
    result = runner.measure_case(tiny(), [numpy_peer], BRIEF)
    (peer,) = result.entries
    assert result.baseline.peak_bytes is not None
    assert peer.status == runner.MEASURED
    assert (peer.peak_bytes, peer.memory_note) == (None, None)


FAILURES = [
    ("Unimportable", "Unimportable: build: ImportError: libpeer.so.1: cannot open shared object file"),
    ("Missing", "Missing: start: AttributeError: module 'tests.tools.peer_fakes' has no attribute 'Missing'"),
    ("SlightlyWrong", "differs from torch.nn in float64 by 0.001, allowed 0.0001"),
    ("WritesNothing", "ys differs from torch.nn in float64 by nan, allowed 0.0001"),
    ("Failing", "Failing: turn: ArithmeticError: no more"),
    ("Dying", "Dying: its process ended by SIGTERM at 'turn': peer: assertion failed"),
    ("Leaving", "Leaving: its process ended with exit code 3 at 'turn'"),
    ("Hanging", "Hanging: no answer to 'turn' within 2 s; its process was ended"),
    ("HangingAtOnce", "HangingAtOnce: no answer to 'build' within 2 s; its process was ended"),
]
TOLD_APART = ("Unimportable", "SlightlyWrong", "Failing", "Dying", "Hanging")
"""Of which the short run has one of each kind: at the start, in its results, and while it is timed."""


@pytest.mark.parametrize(
    ("engine", "message"),
    [pytest.param(*row, marks=() if row[0] in TOLD_APART else pytest.mark.exhaustive) for row in FAILURES],
)
def test_a_peer_that_fails_is_named_and_the_others_are_measured(numpy_peer: Peer, engine: str, message: str) -> None:
    failing = fake(engine, SHORT_SECONDS)
    try:
        contenders = [FastRNN("reference"), failing, numpy_peer]
        result = runner.measure_case(tiny(), contenders, BRIEF, with_memory=False)
    finally:
        failing.close()
    ours, failed, right = result.entries
    assert (failed.status, failed.seconds, failed.ratio) == (runner.FAILED, None, None)
    assert message in str(failed.reason)
    assert result.failed
    assert ours.best_peer == "WithNumPy"
    assert right.ratio is not None


@pytest.mark.parametrize("engine", ["Dying", *exhaustive("Hanging")])
def test_a_peer_that_failed_is_started_anew(engine: str) -> None:
    peer = fake(engine, SHORT_SECONDS)
    try:
        for _ in range(2):
            run = peer.build(make_problem(tiny()))
            assert len(run()) == 2
            with pytest.raises(PeerFailed):
                run.turn(0, 1000)
            assert peer.process.process is None
    finally:
        peer.close()


def test_a_process_that_was_killed_between_turns_is_noticed() -> None:
    peer = fake("WithNumPy")
    run = peer.build(make_problem(tiny()))
    assert peer.process.process is not None
    peer.process.process.kill()
    peer.process.process.wait()
    with pytest.raises(PeerFailed, match="WithNumPy: its process ended by SIGKILL at 'run'"):
        run()


@linux
def test_a_peer_is_stopped_between_its_turns_and_ends_with_close() -> None:
    peer = fake("WithNumPy")
    run = peer.build(make_problem(tiny()))
    assert peer.process.process is not None
    pid = peer.process.process.pid
    assert wait_for_state(pid, "T")
    untimed, timed = run.turn(2, 5)
    assert untimed > 0
    assert timed > 0
    assert wait_for_state(pid, "T")
    peer.close()
    assert state_of(pid) is None


@linux
def test_a_stopped_peer_ends_with_the_process_that_started_it() -> None:
    program = (
        "import os, signal\n"
        "from benchmarks.peers.process import PeerProcess\n"
        "peer = PeerProcess('orphan', 'tests.tools.peer_fakes:WithNumPy')\n"
        "peer._start()\n"
        "print(peer.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert wait_for_state(int(ended.stdout), None, "Z")


@pytest.mark.skipif(not rest.THREADS.is_dir(), reason="the system does not say what threads do")
def test_a_threadpool_of_this_process_must_sleep_before_a_peers_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    rest.rest()
    monkeypatch.setattr(rest, "LIMIT_SECONDS", 0.1)
    thread = threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", BUSY_ROUNDS))  # without the GIL
    thread.start()
    with pytest.raises(rest.NotAtRest):
        rest.rest()
    assert thread.is_alive()
    thread.join()
    monkeypatch.undo()
    rest.rest()


@pytest.mark.parametrize(("used", "rests"), [(0.00001, True), (0.0009, False), (0.002, False)])
def test_where_only_the_process_time_is_known(used: float, rests: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks, a millisecond apart."""
    passed, spent = iter([0.0, 0.001]), iter([0.0, used])
    monkeypatch.setattr(rest.time, "perf_counter", lambda: next(passed))
    monkeypatch.setattr(rest.time, "process_time", lambda: next(spent))
    monkeypatch.setattr(rest.time, "sleep", lambda seconds: None)
    assert rest.little_time_is_used() == rests


def test_a_run_in_another_process_times_its_own_turns() -> None:
    asked: list[tuple[int, int]] = []

    class Elsewhere:
        def __call__(self) -> None:
            raise AssertionError("is not to be called")

        def turn(self, untimed: int, timed: int) -> tuple[float, float]:
            asked.append((untimed, timed))
            return 0.001 * untimed, 0.001 * timed

    (times,) = timing.interleave([Elsewhere()], budget=0.1)
    assert times.calls == 5
    assert times.seconds == pytest.approx([0.001] * len(times.seconds))
    assert asked[-len(times.seconds) :] == [(1, 5)] * len(times.seconds)


def test_what_peers_do_not_run_they_decline() -> None:
    peer = fake("WithNumPy")
    for case, message in (
        (tiny(mode="training"), "WithNumPy does not train"),
        (replace(tiny(), resets=0.1), "WithNumPy takes no resets"),
        (tiny(dtype="bfloat16"), "WithNumPy is measured in float32, not bfloat16"),
    ):
        with pytest.raises(NotServed, match=message):
            peer.build(make_problem(case))
    assert peer.process.process is None


@pytest.mark.exhaustive
def test_from_command_line_to_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "peer", fake)
    monkeypatch.setattr(command, "PEERS", {"WithNumPy": (), "SlightlyWrong": ()})
    monkeypatch.setattr(command, "missing", lambda package: [])
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    arguments = ["--peers", "--cells", "gru", "--modes", ",".join(MODES), "--shapes", TINY, "--no-memory"]
    files = ["--json", str(figures), "--plot", str(picture)]
    arguments += ["--backends", "reference", "--budget", str(BRIEF), *files]
    assert command.main(arguments) == command.FAILURE
    shown = capsys.readouterr().out
    assert "geometric mean of the best peer / contender" in shown
    assert "h_n differs from torch.nn in float64 by 0.001, allowed 0.0001" in shown

    document = json.loads(figures.read_text())
    assert {"onnx", "WithNumPy"} <= set(document["environment"]["packages"])
    assert document["options"]["peers"] == ["WithNumPy", "SlightlyWrong"]
    names = {case["mode"]: [entry["contender"] for entry in case["contenders"]] for case in document["cases"]}
    everyone = ["torch.nn", "fastrnn reference", "WithNumPy", "SlightlyWrong"]
    assert names == {mode: everyone if mode in PEER_MODES else everyone[:2] for mode in MODES}
    for case in document["cases"]:
        assert case["shape"] == {"T": 3 if case["mode"] in command.DEFAULT_MODES else 1, "B": 2, "I": 4, "H": 5}
        if case["mode"] in PEER_MODES:
            _, ours, peer, wrong = case["contenders"]
            assert ours["best_peer"] == "WithNumPy"
            expected = peer["seconds"]["median"] / ours["seconds"]["median"]
            assert ours["peer_ratio"]["median"] == pytest.approx(expected)
            assert "seconds" not in wrong
    groups = [*(f"gru {mode}" for mode in PEER_MODES), "all"]
    assert {name: list(means) for name, means in document["peer_geometric_means"].items()} == {
        "fastrnn reference": groups
    }
    assert picture.read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "tensorflow"], "unknown peer 'tensorflow'; expected one of onnxruntime, openvino"),
        (["--peers", "--resets", "0.1"], "--peers: on cpu and without resets only"),
        (["--peers"], 'needs onnx, onnxruntime, openvino; pip install "fastrnn[peers]"'),
    ],
)
def test_what_is_wrong_with_the_command_line_is_named(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contender.importlib.util, "find_spec", lambda name: None)
    assert command.main([*arguments, "--backends", "reference"]) == command.USAGE_ERROR
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module", params=PEERS)
def real_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    absent = contender.missing(request.param)
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    peer = contender.peer(request.param)
    yield peer
    peer.close()


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize(
    ("mode", "shape", "more"),
    [
        ("inference", Shape(11, 3, 13, 37), {}),
        ("inference", Shape(1, 1, 5, 1), {}),
        ("inference", Shape(5, 2, 7, 19), {"layers": 2, "bidirectional": True}),
        ("streaming", Shape(1, 3, 13, 37), {}),
        ("streaming", Shape(1, 1, 40, 64), {"layers": 3}),
        ("cell", Shape(1, 5, 16, 33), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_real_peer_computes_what_torch_nn_does(
    real_peer: Peer, cell: str, mode: str, shape: Shape, more: dict[str, int]
) -> None:
    problem = make_problem(Case(cell, mode, shape, **more))  # type: ignore[arg-type]
    standard = parity.standard(problem)
    run = real_peer.build(problem)
    assert parity.check_run(real_peer, run(), standard) < 0.1
    run.turn(1, 2)
    again = run()
    for first, second in zip(run(), again, strict=True):
        assert torch.equal(first, second)


def test_a_real_peer_is_timed(real_peer: Peer) -> None:
    result = runner.measure_case(tiny("lstm", "streaming"), [FastRNN("reference"), real_peer], BRIEF, False, TorchNN())
    assert not result.failed, [entry.reason for entry in result.all_entries]
    assert result.entries[0].best_peer == real_peer.name
    assert os.getpid() != getattr(real_peer.process.process, "pid", os.getpid())
