"""The sweep over all arguments of sigmoid and tanh: that it sees all, judges right, and finds what is planted."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("numba", exc_type=ImportError)

from benchmarks import activations as command
from benchmarks.activations import Figures, Sweep
from benchmarks.checkout import variables_of_children

STRIDE = 100_003


def swept(stride: int = STRIDE) -> tuple[Sweep, int]:
    result: Sweep = {}
    seen: list[int] = []
    command.sweep(stride, result, seen.append)
    return result, sum(seen)


def plant(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[command.Single], command.Single]) -> None:
    """Puts the truth, rounded, in the kernels' place, passed through `change` for one of the functions."""

    def function(which: str) -> Callable[[command.Single], command.Single]:
        def apply(x: command.Single) -> command.Single:
            with np.errstate(over="ignore"):
                y = command.TRUTHS[which](x.astype(np.float64)).astype(np.float32)
            return change(y) if which == name else y

        return apply

    monkeypatch.setattr(command, "kernel_function", function)


def test_every_finite_number_is_an_argument() -> None:
    numbers = command.ranges()
    assert sum(one.end - one.first for one in numbers) == 2**32 - 2**24
    for negative in (False, True):
        half = [one for one in numbers if one.negative == negative]
        assert half[0].first == 0
        assert half[-1].end == command.FIRST_INFINITE
        assert all(one.end == other.first for one, other in pairwise(half))
        upper = [command.bits_of(edge) for edge in command.EDGES[1:-1]]
        assert [one.end - 1 for one in half[:-1]] == upper, "the upper edge belongs to a range"


@pytest.mark.parametrize("stride", [1, 7, 60_000, 10**9])
def test_chunks_are_all_of_a_range(stride: int) -> None:
    for negative in (False, True):
        one = command.Range(negative, 5, 5 + 3 * command.CHUNK + 11, (0.0, 1.0))
        bits = np.concatenate([chunk.view(np.uint32) for chunk in command.chunks(one, stride)])
        expected = [*range(one.first, one.end, stride)]
        if expected[-1] != one.end - 1:
            expected.append(one.end - 1)
        assert (bits == np.array(expected, np.uint32) + np.uint32(negative * command.SIGN)).all()


@pytest.mark.parametrize(
    ("truth", "result", "expected"),
    [
        (1.0, 1 + 2.0**-23, 1),
        (1.0, 1 - 2.0**-24, 0.5),
        (1 - 2.0**-40, 1 - 2.0**-24, 1),
        (-3.0, 2.0**-21 - 3, 2),
        (1 / 3, float(np.float32(1 / 3)), 1 / 3),
        (2.0**-126, 2.0**-126 + 2.0**-149, 1),
        (2.0**-140, 2.0**-140 - 2.0**-148, 2),
        (2.0**-150, 0.0, 0.5),
        (0.0, -(2.0**-149), 1),
    ],
)
def test_ulp(truth: float, result: float, expected: float) -> None:
    error = command.in_ulp(np.array([result], np.float32), np.array([truth]))
    np.testing.assert_allclose(error, expected, rtol=1e-4)


def test_the_derivative_counts_absolutely() -> None:
    one_below = np.float32(1) - np.float32(2.0**-24)
    errors = command.of_derivative(np.array([one_below, one_below, 1e-3], np.float32), np.array([1.0, -1.0, 1e-3]))
    np.testing.assert_allclose(errors, [1.0, 1.0, 0.0], atol=1e-6)


def test_rounding_correctly_errs_by_half_an_ulp(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "none", lambda y: y)
    result, count = swept()
    by_name = {measure.what: figures for measure, figures in command.totals(result).items()}
    assert [*by_name] == ["sigmoid", "tanh", "1 - tanh²", "sigmoid, x < -87"]
    assert by_name["tanh"].arguments == by_name["1 - tanh²"].arguments == count
    assert by_name["sigmoid"].arguments + by_name["sigmoid, x < -87"].arguments == count
    assert count == pytest.approx((2**32 - 2**24) / STRIDE, rel=0.01)
    for name in ("sigmoid", "tanh", "1 - tanh²"):
        assert 0.45 < by_name[name].largest <= 0.5 + 1e-6
        assert by_name[name].mean < by_name[name].largest
    assert by_name["sigmoid, x < -87"].largest < 1e-6


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_one_wrong_result_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five ulp off at the one argument whose result is nearest to 1/2, or no number there."""
    for wrong in (5 * 2.0**-24, math.nan):
        found: list[float] = []

        def change(y: command.Single, wrong: float = wrong, found: list[float] = found) -> command.Single:
            near = np.abs(y - 0.6) < 1e-4
            if near.any() and not found:
                at = int(near.argmax())
                found.append(float(y[at]))
                y[at] += np.float32(wrong)
            return y

        plant(monkeypatch, name, change)
        assert command.main(["--stride", "10007"]) == command.FAILURE
        assert found
        shown = capsys.readouterr().out
        where = {"sigmoid": math.log(found[0] / (1 - found[0])), "tanh": math.atanh(found[0])}[name]
        (total,) = (row for row in shown.splitlines() if row.split()[:2] == [name, "all"])
        largest, at = total.split()[-3:-1]
        assert float(at) == pytest.approx(where, rel=1e-5)
        assert math.isnan(float(largest)) if math.isnan(wrong) else 4.4 < float(largest) < 5.6


def test_what_is_joined() -> None:
    low, high, none = Figures(2, 1.0, 0.75, 3.0), Figures(3, 4.0, 2.0, -1.0), Figures(1, math.nan, math.nan, 7.0)
    assert low.join(high) == high.join(low) == Figures(5, 5.0, 2.0, -1.0)
    for joined in (low.join(none), none.join(low)):
        assert joined.where == 7.0
        assert not joined.passes
    assert high.mean == pytest.approx(4 / 3)
    assert high.passes
    assert not high._replace(largest=4.01).passes


@pytest.mark.exhaustive
def test_the_command() -> None:
    """The kernels' own functions, at 43,000 arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.activations", "--stride", str(STRIDE)],
        env=variables_of_children(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == command.OK, done.stdout + done.stderr
    rows = [row.split() for row in done.stdout.splitlines()]
    (sigmoid,) = (row for row in rows if row[:2] == ["sigmoid", "all"])
    (tanh,) = (row for row in rows if row[:2] == ["tanh", "all"])
    for row in (sigmoid, tanh):
        assert 0.5 < float(row[-3]) < command.LIMIT


@pytest.mark.parametrize("stride", ["0", "x"])
def test_a_stride_is_at_least_one(stride: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--stride", stride])
    assert caught.value.code == 2
    assert "--stride" in capsys.readouterr().err


def test_an_interrupted_sweep_tells_what_it_saw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(stride: int, result: Sweep, advance: Callable[[int], object]) -> None:
        result[command.MEASURES[0], command.EDGES[:2]] = Figures(12_345, 1.0, 0.5, 0.25)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "sweep", interrupt)
    assert command.main([]) == command.INTERRUPTED
    captured = capsys.readouterr()
    assert "12,345" in captured.out
    assert "interrupted" in captured.err
