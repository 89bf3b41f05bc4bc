"""The tuner: what it compiles and throws out, how it ranks the rest, and that it times by the backend's own way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks import triton_compile, tune_triton
from benchmarks.checkout import variables_of_children
from benchmarks.sass import Assembly
from benchmarks.triton_compile import Compiled, Kernel
from benchmarks.tune_triton import Candidate

KERNEL = Kernel("forward", "gru", "16 bit", "bfloat16", 16, (8, 2, 0), triton_compile.INFERENCE, 90, 3)


def compiled(instructions: int = 100, barriers: int = 2, spills: int = 0, shared: int = 1024) -> Compiled:
    loop = Counter(FFMA=instructions - barriers - spills - 1, BAR=barriers, LDL=spills, HMMA=1)
    return Compiled(64, 0, shared, 2, Assembly(loop, is_loop=True, shared_loads=0), w_loads=0)


def test_every_variant_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that spills, does not fit or does not compile, on whichever architecture, throws out its candidate."""
    kernels = [KERNEL._replace(tile=(8, warps, 0)) for warps in (1, 2, 4, 8)]

    def outcome(kernel: Kernel) -> Compiled | str:
        largest = kernel.variant == triton_compile.MASKED
        assert kernel.tile is not None
        if kernel.tile[1] == 1 and largest and kernel.capability == 80:
            return compiled(spills=3)
        if kernel.tile[1] == 2 and kernel.capability == 80:
            return compiled(shared=200 * 1024)
        if kernel.tile[1] == 4 and largest and kernel.capability == 100:
            return "PTXASError: no"
        return compiled(shared=3000 if largest else 1000)

    monkeypatch.setattr(tune_triton, "compile_all", lambda kernels: map(outcome, kernels))
    candidates = tune_triton.compile_candidates(kernels, (80, 90, 100))
    assert [candidate.rejected for candidate in candidates] == [
        "sm_80: 3 spills a step",
        "sm_80: 200 KiB of shared memory",
        "sm_100: PTXASError: no",
        "",
    ]
    assert candidates[-1].shared_memory == 3000, "of the largest variant"
    assert candidates[-1].kernel == kernels[-1]


def test_a_cell_without_gates_has_none_to_recompute() -> None:
    backward = KERNEL._replace(direction="backward")
    counts = {
        cell: len(tune_triton.variants_of(backward._replace(cell=cell), (80, 90))) for cell in ("gru", "rnn_relu")
    }
    assert counts == {"gru": 6, "rnn_relu": 4}
    assert tune_triton.variants_of(backward, (90,))[0].variant == triton_compile.TRAINING


def test_the_best_comes_first() -> None:
    """By the guess where nothing was timed: 15 % fewer instructions do not make up for four barriers."""
    few, many = Candidate(KERNEL, compiled(99, 2), 0, ""), Candidate(KERNEL, compiled(84, 6), 0, "")
    out = Candidate(KERNEL, compiled(10), 0, "sm_80: 3 spills a step")
    assert sorted([out, many, few], key=lambda candidate: candidate.rank) == [few, many, out]
    few, many = few._replace(seconds=2e-7), many._replace(seconds=1e-7)
    assert sorted([out, few, many], key=lambda candidate: candidate.rank) == [many, few, out]


def test_what_cannot_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--dtype", "float64"], ["--precision", "tf32"], ["--output", str(tmp_path / "none" / "a.json")]):
        assert tune_triton.main(wrong) == tune_triton.USAGE_ERROR
        assert wrong[0] in capsys.readouterr().err or wrong[0] == "--precision"


@pytest.mark.exhaustive
def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One candidate that compiles and one that has no room for W."""
    reason = triton_compile.missing()
    if reason is not None:
        pytest.skip(reason)
    output = tmp_path / "rows.json"
    arguments = ["--cells", "rnn_tanh", "--units", "256", "--directions", "forward", "--batches", "8"]
    status = tune_triton.main([*arguments, "--warps", "4", "16", "--capabilities", "90", "--output", str(output)])
    assert status == tune_triton.OK
    shown = capsys.readouterr().out
    assert "spills a step" in shown
    assert "nothing was timed" in shown
    (row,) = json.loads(output.read_text())["rows"]
    assert row["tile"]["warps"] == 16
    assert row["seconds_a_step"] is None


TIMING = """
import json, sys
from benchmarks import triton_compile, tune_triton
from benchmarks.triton_compile import Kernel
from tests.tools.test_tune_triton import compiled
from fastrnn.backends.triton import persistent

used = []
forward = persistent.forward


def spy(layer, buffers, tile):
    used.append((tile.warps, persistent.STAGES))
    forward(layer, buffers, tile)


persistent.forward = spy
kernel = Kernel("forward", "gru", "tf32x3", "float32", 5, (8, 2, 0), triton_compile.MASKED, 90, 2)
left = tune_triton.Candidate(kernel, compiled(), 0, "")
out = tune_triton.Candidate(kernel._replace(tile=(8, 4, 0)), compiled(), 0, "spills")
timed = tune_triton.time_candidates([out, left], steps=2, batch=3, device="cpu", budget=0.0)
json.dump({"seconds": [one.seconds for one in timed], "used": sorted(set(used))}, sys.stdout)
"""


def test_candidates_are_timed_by_the_backends_own_way() -> None:
    """Here in the interpreter, with the candidate's own tile and stages; one that is out is not timed."""
    environment = variables_of_children() | {"TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", TIMING], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    assert told["seconds"][0] is None
    assert told["seconds"][1] > 0
    assert told["used"] == [[2, 2]]
