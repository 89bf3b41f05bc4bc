"""benchmarks: what it accepts, what it computes from times, and that it refuses to time what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from benchmarks import means, memory, parity, runner, timing
from benchmarks.cases import (
    MODULES,
    SHAPES,
    STREAM_STEPS,
    Case,
    Problem,
    Shape,
    build_module,
    make_problem,
    parse_shape,
    parse_shapes,
)
from benchmarks.contenders import Contender, FastRNN, NotServed, Run, TorchNN
from benchmarks.timing import Summary, Timing
from fastrnn.cells import CELLS
from tests.tools.benchmark_fakes import BRIEF, TINY, FakeClock, Planted, nan_in_one_place, tiny


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


def test_the_cpu_table_shows_every_regime() -> None:
    table = SHAPES["cpu"]
    assert len(set(table)) == len(table)
    assert 20 <= len(table) <= 30
    for sizes, least, largest in (("T", 1, 1000), ("B", 1, 256), ("H", 32, 1024)):
        found = {getattr(shape, sizes) for shape in table}
        assert {least, largest} <= found
    assert sum(shape.I != shape.H for shape in table) > len(table) / 2
    assert sum(shape.H % 16 > 0 for shape in table) >= 3
    assert all(2 * T * B * 4 * H * (I + H) <= 30e9 for T, B, I, H in table)


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


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize("contender", [TorchNN(), FastRNN("reference")], ids=lambda contender: contender.name)
def test_steps_carry_their_states(cell: str, contender: Contender) -> None:
    case = Case(cell, "streaming", Shape(1, 2, 4, 5), layers=2)
    problem = make_problem(case)
    assert len(problem.x) == STREAM_STEPS
    whole = problem._replace(case=replace(case, mode="inference", shape=Shape(STREAM_STEPS, 2, 4, 5)))
    ys, *states = TorchNN().build(whole)()
    run = contender.build(problem)
    run()
    for step_by_step, expected in zip(run(), (ys[-1:], *states), strict=True):
        torch.testing.assert_close(step_by_step, expected)

    case = Case(cell, "cell", Shape(1, 2, 4, 5))
    problem = make_problem(case)
    module = build_module(torch.nn, replace(case, mode="inference"), torch.float32)
    module.load_state_dict({f"{name}_l0": weight for name, weight in problem.weights.items()})
    _, states = module(problem.x)
    expected_states = states if isinstance(states, tuple) else (states,)
    for step_by_step, expected in zip(contender.build(problem)(), expected_states, strict=True):
        torch.testing.assert_close(step_by_step, expected.squeeze(0))


def test_steps_are_timed_each(monkeypatch: pytest.MonkeyPatch) -> None:
    run_times = Timing([0.016, 0.032, 0.048], 3)
    monkeypatch.setattr(timing, "interleave", lambda functions, budget, burst: [run_times] * len(functions))
    for mode, steps in (("inference", 1), ("streaming", STREAM_STEPS), ("cell", STREAM_STEPS)):
        result = runner.measure_case(tiny(mode=mode), [FastRNN("reference")], BRIEF, with_memory=False)
        for entry in result.all_entries:
            assert entry.seconds is not None
            assert entry.seconds.median == pytest.approx(0.032 / steps)


def test_a_contender_that_fails_while_it_is_timed_leaves_the_others() -> None:
    calls = 0

    def fail_later(results: list[torch.Tensor]) -> list[torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise ZeroDivisionError("later")
        return results

    contenders = [Planted(fail_later), FastRNN("reference")]
    result = runner.measure_case(tiny(), contenders, BRIEF, with_memory=False)
    failed, right = result.entries
    assert (failed.status, failed.reason, failed.seconds) == (runner.FAILED, "ZeroDivisionError: later", None)
    assert right.ratio is not None


def test_summary_is_median_and_quartiles() -> None:
    assert timing.summarize([5.0, 1.0, 3.0, 2.0, 4.0]) == Summary(3.0, 2.0, 4.0)
    assert timing.summarize([2.0]) == Summary(2.0, 2.0, 2.0)


def test_ratio_is_of_medians_with_paired_quartiles() -> None:
    slow_machine_in_round_2 = Timing([2.0, 20.0, 4.0], 1), Timing([1.0, 10.0, 1.0], 1)
    assert timing.ratio(*slow_machine_in_round_2) == Summary(4.0, 2.0, 3.0)


def test_times_are_those_of_the_clock() -> None:
    clock = FakeClock()
    slow, fast = timing.interleave(
        [clock.function("slow", 0.004), clock.function("fast", 0.0005)], budget=1.0, burst=clock.burst, clock=clock
    )
    assert slow.seconds == pytest.approx([0.004] * len(slow.seconds))
    assert fast.seconds == pytest.approx([0.0005] * len(slow.seconds))
    assert timing.ratio(slow, fast) == pytest.approx((8.0, 8.0, 8.0))
    assert fast.calls * 0.0005 >= timing.BURST_SECONDS
    assert timing.MIN_ROUNDS < len(slow.seconds) < timing.MAX_ROUNDS


def test_runs_take_turns() -> None:
    clock = FakeClock()
    timing.interleave([clock.function("a", 0.2), clock.function("b", 0.2)], budget=0.1, burst=clock.burst, clock=clock)
    assert clock.calls[-2 * timing.MIN_ROUNDS :] == ["a", "b"] * timing.MIN_ROUNDS


def test_the_first_calls_are_not_timed() -> None:
    clock = FakeClock()
    compiling = clock.function("compiling", 30.0, *[0.2] * 100)
    (times,) = timing.interleave([compiling], budget=1.0, burst=clock.burst, clock=clock)
    assert times.seconds == pytest.approx([0.2] * len(times.seconds))


def test_the_budget_is_kept() -> None:
    clock = FakeClock()
    function = clock.function("f", 0.001)
    timing.interleave([function], budget=2.0, burst=clock.burst, clock=clock)
    assert clock.now == pytest.approx(2.0 + timing.WARM_UP_SECONDS, rel=0.1)


def test_the_budget_counts_what_bursts_leave_out() -> None:
    """As on a GPU, whose events do not see that L2 is cleared between calls."""
    clock = FakeClock()
    function = clock.function("f", 0.01)
    timing.interleave([function], 2.0, lambda run, calls: clock.burst(run, calls) / 10, clock)
    calibration = 10 * timing.WARM_UP_SECONDS
    assert clock.now == pytest.approx(2.0 + calibration, rel=0.2)


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
