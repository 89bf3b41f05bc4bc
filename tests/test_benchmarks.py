"""benchmarks: what it accepts, what it computes from times, and that it refuses to time what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import cuda, means, memory, parity, precision, report, runner, timing, torchrl_triton
from benchmarks.cases import MODULES, SHAPES, Case, Problem, Shape, make_problem, parse_shape, parse_shapes
from benchmarks.contenders import FastRNN, NotServed, Run, TorchNN
from benchmarks.timing import Summary, Timing
from benchmarks.torchrl_triton import TorchRL
from fastrnn.cells import CELLS

TINY = "3x2x4x5"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BRIEF = 0.02
"""Seconds for the times of a case: five rounds."""


def tiny(cell: str = "gru", mode: str = "inference", **more: object) -> Case:
    return Case(cell, mode, parse_shape(TINY), **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Planted:
    """torch.nn, with what it returns passed through `change`."""

    change: Callable[[list[torch.Tensor]], list[torch.Tensor]]
    name: str = "planted"

    def build(self, problem: Problem) -> Run:
        run = TorchNN().build(problem._replace(resets=None))
        return lambda: self.change([tensor.clone() for tensor in run()])


class FakeClock:
    """Time passes only in the functions that it makes: one takes the given seconds, in turn, call by call."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def function(self, name: str, *seconds: float) -> Callable[[], None]:
        durations = cycle(seconds)

        def call() -> None:
            self.now += next(durations)
            self.calls.append(name)

        return call

    def burst(self, function: Callable[[], object], calls: int) -> float:
        return timing.wall_burst(function, calls, clock=self)


def test_every_cell_of_torch_nn_can_be_measured() -> None:
    assert set(MODULES) <= set(CELLS)
    assert {"rnn_tanh", "rnn_relu", "lstm", "gru"} <= set(MODULES)


def test_shapes_are_parsed() -> None:
    assert parse_shape("100x32x256") == Shape(100, 32, 256, 256)
    assert parse_shape("100x32x80x256") == Shape(T=100, B=32, I=80, H=256)
    assert str(parse_shape("7x1x3")) == "7x1x3x3"
    assert parse_shapes(["default", "7x1x3", "7x1x3x3"]) == [*SHAPES["default"], Shape(7, 1, 3, 3)]
    assert {(shape.T, shape.B, shape.H) for shape in SHAPES["default"]} == {
        (100, B, H) for B in (1, 32) for H in (64, 256)
    }


@pytest.mark.parametrize("text", ["", "100", "100x32", "1x2x3x4x5", "axbxc", "100x32x-1", "100x0x64", "1*2*3"])
def test_wrong_shapes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"shape '.*': .*or a table: default, streaming, full"):
        parse_shapes([text])


def test_a_problem_is_the_same_every_time_and_leaves_torch_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = make_problem(tiny("lstm", "training")), make_problem(tiny("lstm", "training"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.x, second.x)
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert first.names == ("ys", "h_n", "c_n", "d x", *(f"d {name}" for name in first.weights))


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_torch_nn_returns_what_is_named(cell: str, mode: str) -> None:
    case = tiny(cell, mode, layers=2, bidirectional=True)
    problem = make_problem(case)
    with case.grad_mode():
        results = TorchNN().build(problem)()
        assert parity.check(results, parity.standard(problem)) <= 0.5
    gradients = dict(zip(problem.names, results, strict=True))
    for name, weight in problem.weights.items() if case.training else ():
        assert gradients[f"d {name}"].shape == weight.shape


def test_summary_is_median_and_quartiles() -> None:
    assert timing.summarize([5.0, 1.0, 3.0, 2.0, 4.0]) == Summary(3.0, 2.0, 4.0)
    assert timing.summarize([2.0]) == Summary(2.0, 2.0, 2.0)


def test_ratio_is_of_medians_with_paired_quartiles() -> None:
    slow_machine_in_round_2 = Timing([2.0, 20.0, 4.0], 1), Timing([1.0, 10.0, 1.0], 1)
    assert timing.ratio(*slow_machine_in_round_2) == Summary(4.0, 2.0, 3.0)


def test_times_are_those_of_the_clock() -> None:
    clock = FakeClock()
    slow, fast = timing.interleave(
        [clock.function("slow", 0.004), clock.function("fast", 0.0005)], budget=1.0, burst=clock.burst
    )
    assert slow.seconds == pytest.approx([0.004] * len(slow.seconds))
    assert fast.seconds == pytest.approx([0.0005] * len(slow.seconds))
    assert timing.ratio(slow, fast) == pytest.approx((8.0, 8.0, 8.0))
    assert fast.calls * 0.0005 >= timing.BURST_SECONDS
    assert timing.MIN_ROUNDS < len(slow.seconds) < timing.MAX_ROUNDS


def test_runs_take_turns() -> None:
    clock = FakeClock()
    timing.interleave([clock.function("a", 0.2), clock.function("b", 0.2)], budget=0.1, burst=clock.burst)
    assert clock.calls[-2 * timing.MIN_ROUNDS :] == ["a", "b"] * timing.MIN_ROUNDS


def test_the_first_calls_are_not_timed() -> None:
    clock = FakeClock()
    compiling = clock.function("compiling", 30.0, *[0.2] * 100)
    (times,) = timing.interleave([compiling], budget=1.0, burst=clock.burst)
    assert times.seconds == pytest.approx([0.2] * len(times.seconds))


def test_the_budget_is_kept() -> None:
    clock = FakeClock()
    function = clock.function("f", 0.001)
    timing.interleave([function], budget=2.0, burst=clock.burst)
    assert clock.now == pytest.approx(2.0 + timing.WARM_UP_SECONDS, rel=0.1)


def test_geometric_means_and_worst_cases_are_by_cell_mode_and_dtype_and_over_all() -> None:
    def result(cell: str, ratio: float | None, dtype: str = "float32", layers: int = 1) -> runner.CaseResult:
        entry = runner.Entry("fastrnn auto", ratio=None if ratio is None else Summary(ratio, ratio, ratio))
        return runner.CaseResult(tiny(cell, dtype=dtype, layers=layers), runner.Entry("torch.nn"), [entry])

    half = result("lstm", 2.0, "float16")
    results = [result("lstm", 1.0), result("lstm", 4.0, layers=2), half, result("gru", 32.0), result("gru", None)]
    geometric = means.geometric_means(results)
    assert list(geometric) == ["fastrnn auto"]
    groups = ["lstm inference", "lstm inference float16", "gru inference", "all"]
    assert list(geometric["fastrnn auto"]) == groups
    assert list(geometric["fastrnn auto"].values()) == pytest.approx([2.0, 2.0, 32.0, 4.0])
    worst = means.worst_cases(results)["fastrnn auto"]
    assert list(worst) == groups
    assert worst["all"] == (1.0, f"lstm inference {TINY}")
    assert worst["lstm inference float16"] == (2.0, f"lstm inference {TINY} float16")
    assert means.geometric_means(results, means.GRAPH_RATIO) == {}
    assert means.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def off_by_a_little(results: list[torch.Tensor]) -> list[torch.Tensor]:
    return [*results[:-1], results[-1] * (1 + 1e-5)]


def nan_in_one_place(results: list[torch.Tensor]) -> list[torch.Tensor]:
    results[0].view(-1)[0] = torch.nan
    return results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (off_by_a_little, "d bias_hh_l0 differs from torch.nn in float64 by 1e-05"),
        (nan_in_one_place, "ys differs from torch.nn in float64 by nan"),
        (lambda results: results[:-1], "6 results, expected 7"),
        (lambda results: [results[0][:1], *results[1:]], r"ys has shape (1, 2, 5), torch.nn's has (3, 2, 5)"),
        (lambda results: [results[0].double(), *results[1:]], "ys is torch.float64, torch.nn's is torch.float32"),
    ],
    ids=["value", "nan", "count", "shape", "dtype"],
)
def test_a_wrong_contender_is_not_timed(
    change: Callable[[list[torch.Tensor]], list[torch.Tensor]], message: str
) -> None:
    result = runner.measure_case(tiny("gru", "training"), [Planted(change)], BRIEF, with_memory=False)
    (entry,) = result.entries
    assert entry.failed
    assert result.failed
    assert message in str(entry.reason)
    assert (entry.seconds, entry.ratio, entry.peak_bytes) == (None, None, None)
    assert result.baseline.seconds is not None


def test_a_contender_may_decline_a_case() -> None:
    def decline(results: list[torch.Tensor]) -> list[torch.Tensor]:
        raise NotServed("gru: backend 'x' cannot serve this call: too small")

    contenders = [Planted(decline), Planted(lambda results: results, name="right")]
    result = runner.measure_case(tiny(), contenders, BRIEF, with_memory=False)
    declined, right = result.entries
    assert (declined.status, declined.seconds) == (runner.NOT_SERVED, None)
    assert right.ratio is not None
    assert not result.failed


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_resets_are_measured_against_the_reference_in_float64(cell: str, mode: str) -> None:
    case = Case(cell, mode, Shape(7, 3, 4, 5), resets=0.4)
    problem = make_problem(case)
    assert problem.resets is not None
    assert problem.resets.shape == (7, 3)
    assert torch.equal(problem.x, make_problem(replace(case, resets=0.0)).x)
    assert case.label.endswith("7x3x4x5 resets 0.4")

    unaware = Planted(lambda results: results, name="unaware of resets")
    contenders = [FastRNN("reference"), FastRNN("numba"), FastRNN("aten"), TorchNN(), unaware]
    result = runner.measure_case(case, contenders, BRIEF, with_memory=False, baseline=FastRNN("auto"))
    reference, numba, aten, torchs, wrong = result.entries
    assert result.baseline.seconds is not None
    for entry in (reference, numba):
        assert entry.status == runner.MEASURED
        assert entry.ratio is not None
    for entry in (aten, torchs):
        assert entry.status == runner.NOT_SERVED
        assert "no resets" in str(entry.reason)
    assert wrong.failed
    assert "ys differs from fastrnn reference in float64" in str(wrong.reason)


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


def test_a_backend_declines_by_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.backends import reference

    monkeypatch.setattr(reference, "supports", lambda layer: "it is Sunday")
    with pytest.raises(NotServed, match=r"^gru: .*it is Sunday$"):
        FastRNN("reference").build(make_problem(tiny()))


def test_a_contender_that_raises_is_a_failure() -> None:
    def crash(results: list[torch.Tensor]) -> list[torch.Tensor]:
        raise ZeroDivisionError("kernel")

    result = runner.measure_case(tiny(), [Planted(crash)], BRIEF, with_memory=False)
    assert result.failed
    assert result.entries[0].reason == "ZeroDivisionError: kernel"


@dataclass(frozen=True)
class Allocating:
    """Allocates, and returns, this many bytes."""

    size: int
    name: str = "allocating"

    def build(self, problem: Problem) -> Run:
        return lambda: [torch.ones(self.size, dtype=torch.uint8)]


exact = pytest.mark.skipif(not memory.can_reset(), reason="this system gives only a lower bound")


@exact
def test_peak_memory_is_what_a_call_allocates() -> None:
    size = 48 * 2**20
    assert memory.measure(Allocating(size), tiny()) == pytest.approx(size, rel=0.05)


@exact
def test_peak_memory_comes_from_another_process_with_its_errors() -> None:
    size = 16 * 2**20
    peak = memory.peak_bytes(Allocating(size), tiny(), threads=1)
    assert peak == pytest.approx(size, rel=0.2)
    with pytest.raises(memory.MemoryNotMeasured, match=r"RuntimeError: .*negative"):
        memory.peak_bytes(Allocating(-1), tiny(), threads=1)


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


class FakeGPU:
    """Events that take their times from a clock which only `clock` and the functions it makes move, in seconds."""

    def __init__(self) -> None:
        self.clock = FakeClock()

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=None, synchronize=lambda: None)

        def record() -> None:
            event.at = self.clock.now

        event.record = record
        event.elapsed_time = lambda end: (end.at - event.at) * 1e3
        return event


def test_an_eager_burst_is_timed_by_one_pair_of_events() -> None:
    gpu = FakeGPU()
    call = gpu.clock.function("call", 0.25, 0.5)
    assert cuda.burst(call, 4, event=gpu.event) == pytest.approx(1.5)
    assert gpu.clock.calls == ["call"] * 4


def test_what_clears_l2_is_not_timed() -> None:
    gpu = FakeGPU()
    measure = cuda.cold_burst(gpu.clock.function("clear", 10.0), event=gpu.event)
    assert measure(gpu.clock.function("call", 0.25, 0.5), 3) == pytest.approx(1.0)
    assert gpu.clock.calls == ["clear", "call"] * 3


@pytest.mark.parametrize(
    ("bytes_of_x", "l2", "expected"),
    [(100, 1000, 21), (1000, 1000, 3), (1001, 1000, 1), (10**9, 1000, 1), (1, 10**9, cuda.MAX_COPIES)],
)
def test_copies_exceed_l2_where_one_fits_into_it(bytes_of_x: int, l2: int, expected: int) -> None:
    x = torch.empty(bytes_of_x, dtype=torch.uint8, device="meta")
    assert cuda.copies([x], l2) == expected
    if 1 < expected < cuda.MAX_COPIES:
        assert bytes_of_x * expected > cuda.L2_FACTOR * l2 >= bytes_of_x * (expected - 1)
    assert cuda.copies([x, x], l2) <= expected


def test_the_grid_for_gpus_needs_no_more_copies_than_allowed() -> None:
    large_l2 = 64 * 2**20
    for shape in SHAPES["gpu"]:
        x = torch.empty(shape.T, shape.B, shape.I, dtype=torch.bfloat16, device="meta")
        assert cuda.copies([x], large_l2) < cuda.MAX_COPIES
    assert {(shape.T, shape.B, shape.I) for shape in SHAPES["gpu"]} == {
        (T, B, H) for T in (128, 1024) for B in (16, 64, 256) for H in (32, 64, 128)
    }
    assert all(shape.I == shape.H for shape in SHAPES["gpu"])


def test_the_size_of_l2_is_asked_for() -> None:
    assert cuda.l2_bytes(SimpleNamespace(L2_cache_size=7)) == 7
    assert cuda.l2_bytes(SimpleNamespace(L2_cache_size=0)) == cuda.FALLBACK_L2_BYTES
    assert cuda.l2_bytes(SimpleNamespace()) == cuda.FALLBACK_L2_BYTES


def test_calls_rotate_over_copies_in_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = torch.nn.GRU.forward

    def spy(self: torch.nn.GRU, x: torch.Tensor) -> object:
        seen.append(x.data_ptr())
        return forward(self, x)

    monkeypatch.setattr(torch.nn.GRU, "forward", spy)
    problem = make_problem(tiny("gru", "training"))
    standard = parity.standard(problem)
    run = TorchNN().build(problem._replace(copies=3))
    del seen[:]
    for _ in range(6):
        assert parity.check(run(), standard) <= 0.5
    assert seen[:3] == seen[3:]
    assert len({*seen, problem.x.data_ptr()}) == 4


def test_peak_memory_on_a_gpu_is_above_what_was_there() -> None:
    asked: list[str] = []

    def answer(name: str, value: int | None = None) -> Callable[[], int | None]:
        return lambda: asked.append(name) or value

    fake = SimpleNamespace(
        synchronize=answer("synchronize"),
        reset_peak_memory_stats=answer("reset"),
        memory_allocated=answer("before", 100),
        max_memory_allocated=answer("peak", 350),
    )
    assert cuda.peak_bytes(answer("call"), fake) == 250
    assert asked == ["synchronize", "reset", "before", "call", "synchronize", "peak"]


def tf32_flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "tf32"])
def test_tf32_is_allowed_only_within_its_cases(dtype: str) -> None:
    before = tf32_flags()
    seen: list[tuple[bool, bool]] = []

    def look(results: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append(tf32_flags())
        raise ZeroDivisionError

    runner.measure_case(tiny(dtype=dtype), [Planted(look)], BRIEF, with_memory=False)
    assert seen == [(dtype == "tf32",) * 2]
    assert tf32_flags() == before

    def fail_within() -> None:
        with precision.products("tf32"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_within()
    assert tf32_flags() == before


def test_tf32_has_tensors_in_float32() -> None:
    problem = make_problem(tiny(dtype="tf32"))
    assert problem.x.dtype == torch.float32
    assert problem.case.label.endswith(" tf32")


def fake_kernels() -> SimpleNamespace:
    """TorchRL's functions by their documented arguments, computed by torch.nn's cells, batch first."""

    def steps(cell: torch.nn.Module, x, is_init, weights, entering):  # type: ignore[no-untyped-def]
        assert x.is_contiguous()
        assert (is_init.dtype, is_init.shape, is_init.is_contiguous()) == (torch.bool, x.shape[:2], True)
        assert all(state.dtype == x.dtype == torch.float32 for state in entering)
        states = [state[:, 0] for state in entering]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        outputs: list[list[torch.Tensor]] = [[] for _ in states]
        for t in range(x.shape[1]):
            cut = is_init[:, t, None]
            states = [torch.where(cut, new[:, t], old) for new, old in zip(entering, states, strict=True)]
            hx = states[0] if len(states) == 1 else tuple(states)
            after = torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (x[:, t], hx))
            states = [after] if len(states) == 1 else list(after)
            for kept, state in zip(outputs, states, strict=True):
                kept.append(state)
        return (*(torch.stack(kept, 1) for kept in outputs), *states)

    def lstm_triton(x, hidden, cell, *weights_and_init, compute_dtype, input_precision):  # type: ignore[no-untyped-def]
        *weights, is_init = weights_and_init
        assert (compute_dtype, input_precision) in torchrl_triton.PRECISIONS.values()
        return steps(torch.nn.LSTMCell(x.shape[-1], hidden.shape[-1]), x, is_init, weights, (hidden, cell))

    def gru_triton(x, hidden, *weights_and_init, compute_dtype, input_precision):  # type: ignore[no-untyped-def]
        *weights, is_init = weights_and_init
        return steps(torch.nn.GRUCell(x.shape[-1], hidden.shape[-1]), x, is_init, weights, (hidden,))

    tuned = SimpleNamespace(configs=[], cache={"key": "choice"})
    return SimpleNamespace(lstm_triton=lstm_triton, gru_triton=gru_triton, _kernel=tuned)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("options", [{"resets": 0.4}, {"layers": 2, "resets": 0.4}, {"dtype": "bfloat16"}], ids=str)
def test_torchrl_is_called_as_its_documentation_says(
    cell: str, mode: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = fake_kernels()
    monkeypatch.setattr(torchrl_triton, "why_not", lambda case: None)
    monkeypatch.setattr(torchrl_triton, "load", lambda: kernels)
    case = Case(cell, mode, Shape(7, 3, 4, 5), **options)  # type: ignore[arg-type]
    result = runner.measure_case(case, [FastRNN("reference")], BRIEF, with_memory=False, baseline=TorchRL())
    assert result.baseline.status == runner.MEASURED, result.baseline.reason
    assert result.baseline.allowance is not None
    assert result.entries[0].ratio is not None
    assert kernels._kernel.cache == {}


def test_torchrl_declines_what_it_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(**options: object) -> str | None:
        return torchrl_triton.why_not(tiny(**{"cell": "lstm", "device": "cuda", **options}))  # type: ignore[arg-type]

    assert reason() is None
    assert "GPU only" in str(reason(device="cpu"))
    assert "rnn_tanh" in str(reason(cell="rnn_tanh"))
    assert "one direction" in str(reason(bidirectional=True))
    assert "float16" in str(reason(dtype="float16"))
    monkeypatch.setattr(torchrl_triton, "installed", lambda: False)
    with pytest.raises(NotServed, match="torchrl is not installed"):
        torchrl_triton.load()


def test_a_gpu_that_is_not_there_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda, "why_not", lambda: "torch 9.9 is built without CUDA")
    assert command.main(["--device", "cuda"]) == command.USAGE_ERROR
    assert "error: --device cuda: torch 9.9 is built without CUDA" in capsys.readouterr().err


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert str(cuda.why_not()).endswith("is built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", no_driver)
    assert cuda.why_not() == "torch finds no GPU: Found no NVIDIA driver on your system."
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert str(cuda.why_not()).endswith("is built for ROCm")


def test_a_case_on_a_gpu_from_command_line_to_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the GPU itself: its problems are made on the CPU, its events are a clock's, its graphs the calls."""

    def capture(run: Run) -> SimpleNamespace:
        if len(captured) == 1:
            captured.append(run)
            raise cuda.NotCaptured("RuntimeError: operation not permitted when stream is capturing")
        captured.append(run)
        return SimpleNamespace(replay=run)

    captured: list[Run] = []
    device = {"gpu": "Fake H0", "driver": "1.2", "cuda": "13.0", "cudnn": 91000}
    monkeypatch.setattr(cuda, "why_not", lambda: None)
    monkeypatch.setattr(cuda, "has_tf32", lambda: True)
    monkeypatch.setattr(cuda, "describe", lambda: device)
    monkeypatch.setattr(cuda, "burst", timing.wall_burst)
    monkeypatch.setattr(cuda, "cold_burst", lambda clear: timing.wall_burst)
    monkeypatch.setattr(cuda, "l2_clearer", lambda: None)
    monkeypatch.setattr(cuda, "capture", capture)
    monkeypatch.setattr(cuda, "peak_bytes", lambda run: 2**20)
    monkeypatch.setattr(runner, "make_problem", lambda case: make_problem(replace(case, device="cpu")))
    monkeypatch.setattr(torchrl_triton, "installed", lambda: False)
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    arguments = ["--device", "cuda", "--cells", "lstm", "--modes", "training", "--shapes", TINY, "--dtype", "tf32"]
    files = ["--json", str(figures), "--plot", str(picture), "--budget", str(BRIEF)]
    assert command.main([*arguments, "--backends", "reference,aten", *files]) == command.OK

    shown = capsys.readouterr().out
    for word in ("Fake H0, driver 1.2, CUDA 13.0, cuDNN 91000", "torch.nn graph", "as CUDA graphs", "worst"):
        assert word in shown
    assert "fastrnn reference: measured: graph: RuntimeError: operation not permitted" in shown
    document = json.loads(figures.read_text())
    assert {"gpu": "Fake H0", "device": "cuda"}.items() <= document["environment"].items()
    assert {"torch", "triton", "torchrl"} <= set(document["environment"]["packages"])
    (case,) = document["cases"]
    assert (case["dtype"], case["device"], case["tf32_allowed"]) == ("tf32", "cuda", True)
    torchs, reference, aten = case["contenders"]
    assert "graph_note" in reference
    assert "graph_seconds" not in reference
    assert aten["graph_ratio"]["median"] == pytest.approx(
        torchs["graph_seconds"]["median"] / aten["graph_seconds"]["median"]
    )
    assert [entry["peak_bytes"] for entry in case["contenders"]] == [2**20] * 3
    assert set(document["graph_geometric_means"]) == {"fastrnn aten"}
    assert picture.read_bytes().startswith(PNG_SIGNATURE)


def test_the_backends_measured_by_default_are_those_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn import backends

    answers = {"triton": None, "cuda": "no extension"}
    monkeypatch.setattr(backends, "NAMES", ("auto", "triton", "cuda", "reference"))
    monkeypatch.setattr(backends, "module", lambda name: SimpleNamespace(ready=lambda: answers[name]))
    assert command.default_backends("cuda") == ["auto", "triton"]
    assert command.default_backends("cpu") == ["auto"]
    monkeypatch.setattr(backends, "NAMES", ("auto", "numba"))
    assert command.default_backends("cuda") == ["auto"]


on_gpu = pytest.mark.skipif(cuda.why_not() is not None, reason="needs a GPU")


@on_gpu
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16", "float16"])
def test_torch_nn_on_a_gpu(mode: str, dtype: str) -> None:
    case = Case("lstm", mode, Shape(64, 16, 64, 64), dtype, device="cuda")
    result = runner.measure_case(case, [FastRNN("aten")], BRIEF)
    for entry in result.all_entries:
        assert entry.status == runner.MEASURED, entry.reason
        assert entry.graph_seconds is not None, entry.graph_note
        assert entry.seconds is not None
        assert entry.graph_seconds.median < 2 * entry.seconds.median
        assert entry.peak_bytes is not None
        assert entry.peak_bytes >= 64 * 16 * 64 * 2  # the outputs alone


@on_gpu
def test_the_data_is_the_same_on_a_gpu() -> None:
    case = tiny("lstm", "training", resets=0.3)
    here, there = make_problem(case), make_problem(replace(case, device="cuda"))
    assert there.x.is_cuda
    for name in ("x", "dy", "resets"):
        assert torch.equal(getattr(here, name), getattr(there, name).cpu())


@on_gpu
def test_a_gpu_describes_itself() -> None:
    described = cuda.describe()
    json.dumps(described)
    assert described["l2_bytes"]
    assert described["cudnn"]


@on_gpu
def test_peak_memory_on_a_gpu_is_what_a_call_allocates() -> None:
    size = 48 * 2**20
    assert cuda.peak_bytes(lambda: torch.empty(size, dtype=torch.uint8, device="cuda")) == size


@on_gpu
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_torchrl_on_a_gpu(cell: str, mode: str) -> None:
    if not torchrl_triton.installed():
        pytest.skip("needs torchrl")
    case = Case(cell, mode, Shape(16, 16, 32, 32), "tf32", device="cuda", resets=0.1)
    result = runner.measure_case(case, [FastRNN("reference")], BRIEF, baseline=TorchRL())
    assert result.baseline.status == runner.MEASURED, result.baseline.reason
