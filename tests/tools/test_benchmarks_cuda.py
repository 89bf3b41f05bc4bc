"""The benchmark suite on a GPU: what needs none is shown by fakes, the rest where there is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import cuda, parity, precision, runner, timing, torchrl_triton
from benchmarks.cases import SHAPES, Case, Shape, make_problem
from benchmarks.contenders import FastRNN, NotServed, Run, TorchNN
from benchmarks.torchrl_triton import TorchRL
from tests.selection import exhaustive
from tests.tools.benchmark_fakes import BRIEF, PNG_SIGNATURE, TINY, FakeClock, Planted, tiny


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


@pytest.mark.parametrize("cell", ["lstm", *exhaustive("gru")])
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
@pytest.mark.gpu
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
@pytest.mark.gpu
def test_the_data_is_the_same_on_a_gpu() -> None:
    case = tiny("lstm", "training", resets=0.3)
    here, there = make_problem(case), make_problem(replace(case, device="cuda"))
    assert there.x.is_cuda
    for name in ("x", "dy", "resets"):
        assert torch.equal(getattr(here, name), getattr(there, name).cpu())


@on_gpu
@pytest.mark.gpu
def test_a_gpu_describes_itself() -> None:
    described = cuda.describe()
    json.dumps(described)
    assert described["l2_bytes"]
    assert described["cudnn"]


@on_gpu
@pytest.mark.gpu
def test_peak_memory_on_a_gpu_is_what_a_call_allocates() -> None:
    size = 48 * 2**20
    assert cuda.peak_bytes(lambda: torch.empty(size, dtype=torch.uint8, device="cuda")) == size


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_torchrl_on_a_gpu(cell: str, mode: str) -> None:
    if not torchrl_triton.installed():
        pytest.skip("needs torchrl")
    case = Case(cell, mode, Shape(16, 16, 32, 32), "tf32", device="cuda", resets=0.1)
    result = runner.measure_case(case, [FastRNN("reference")], BRIEF, baseline=TorchRL())
    assert result.baseline.status == runner.MEASURED, result.baseline.reason
