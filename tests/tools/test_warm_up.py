"""`python -m fastrnn --warm-up`: every kernel is compiled once, found again, and missed where it cannot be kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("numba", exc_type=ImportError)

from fastrnn import __main__ as command
from fastrnn import warm_up
from fastrnn.backends.numba import compile as kernels
from fastrnn.backends.numba import kernel_files
from fastrnn.prepacking import FORMATS

CELL = "rnn_relu"
TASKS = [task for task in warm_up.TASKS if task not in kernels.SHARED]
TITLES = [
    *("pack float32", "weights float32"),
    *(f"rnn relu {task.replace('_', ' ')} float32" for task in TASKS),
    f"{kernels.PARALLEL} float32",
]
USE = """
import torch, fastrnn
rnn = fastrnn.RNN(5, 6, nonlinearity="relu", backend="numba")
for steps in (1, 20):
    rnn(torch.randn(steps, 3, 5))[0].sum().backward()
    with torch.inference_mode():
        rnn(torch.randn(steps, 3, 5))
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("FASTRNN_CACHE_DIR", "NUMBA_CACHE_DIR")}
    return subprocess.run([sys.executable, *command], env=clean | environment, capture_output=True, text=True)


def warmed_up(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "fastrnn", "--warm-up", "--cells", CELL, *arguments, **environment)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One cell's kernels, compiled into an empty directory; its name is that of the place of last resort."""
    base = tmp_path_factory.mktemp("warm") / f"fastrnn-{os.getuid()}"
    return warmed_up(FASTRNN_CACHE_DIR=str(base)), base


def kernel_directory(base: Path) -> Path:
    (directory,) = base.iterdir()
    return directory


@pytest.mark.exhaustive
def test_what_was_compiled_is_told(first: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, base = first
    assert done.returncode == 0, done.stderr
    directory = kernel_directory(base)
    said = [f"fastrnn: compiling the kernel {title}, once; it is kept in {directory}" for title in TITLES]
    assert done.stderr.splitlines() == said
    heading, *rows, total, blank, where = done.stdout.splitlines()
    assert heading.split() == ["kernel", "seconds"]
    assert [row.rsplit(maxsplit=2)[:2] for row in rows] == [[title, "compiled"] for title in TITLES]
    seconds = [float(row.split()[-1]) for row in rows]
    assert all(value > 0 for value in seconds)
    assert total.startswith("in all")
    assert float(total.split()[-1]) == pytest.approx(sum(seconds), abs=0.01 * len(rows))
    assert (blank, where) == ("", f"kept in {directory}")
    assert sorted(path.name.split(".")[0] for path in directory.iterdir()) == sorted(
        title.replace(" ", "_") for title in TITLES
    )


@pytest.mark.exhaustive
def test_a_second_process_compiles_nothing(first: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, base = first
    directory = kernel_directory(base)
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    done = warmed_up("--json", FASTRNN_CACHE_DIR=str(base))
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["directory"] == str(directory)
    assert told["reason"] is None
    assert [(kernel["name"].replace("_", " "), kernel["outcome"]) for kernel in told["kernels"]] == [
        (title, "found") for title in TITLES
    ]
    assert told["seconds"] == pytest.approx(sum(kernel["seconds"] for kernel in told["kernels"]))
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


@pytest.mark.exhaustive
def test_no_later_call_compiles(first: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Training and inference, of one step and of several."""
    _, base = first
    before = set(kernel_directory(base).iterdir())
    done = run("-c", USE, FASTRNN_CACHE_DIR=str(base))
    assert (done.returncode, done.stderr) == (0, "")
    assert set(kernel_directory(base).iterdir()) == before


@pytest.mark.exhaustive
def test_a_directory_that_cannot_be_used(first: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path) -> None:
    """The kernels are kept, and found, among the temporary files; that is told."""
    _, base = first
    blocked = tmp_path / "a file"
    blocked.touch()
    done = warmed_up(FASTRNN_CACHE_DIR=str(blocked), TMPDIR=str(base.parent))
    assert done.returncode == 0
    assert f"cannot write to {blocked}: kernels are kept in {base}; set FASTRNN_CACHE_DIR" in done.stderr
    assert "compiling" not in done.stderr
    assert done.stdout.splitlines()[-1] == f"kept in {kernel_directory(base)}"


def test_nowhere_to_keep_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernel_files, "places", lambda: kernel_files.Places((), None))
    monkeypatch.setattr(kernels, "kernel", lambda *key: pytest.fail("compiled for nothing"))
    assert command.main(["--warm-up"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fastrnn: kernels cannot be kept: no directory can be written to; set FASTRNN_CACHE_DIR\n"


def test_kernels_that_could_not_be_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The disk becomes full after the first one; where a file was there but damaged, it was compiled anew."""
    (tmp_path / "rnn_relu_unpacked_float32.py311").touch()

    def kernel(cell: str, task: str, dtype: torch.dtype) -> None:
        name = "_".join(filter(None, (cell, task, str(dtype).removeprefix("torch."))))
        path = tmp_path / f"{name}.py311"
        if path.exists():
            os.utime(path, ns=(1, 1))
        elif not any(tmp_path.glob("pack*")):
            path.touch()

    monkeypatch.setattr(kernel_files, "places", lambda: kernel_files.Places((tmp_path,), tmp_path))
    monkeypatch.setattr(kernels, "kernel", kernel)
    assert command.main(["--warm-up", "--cells", CELL, "--json"]) == 1
    captured = capsys.readouterr()
    outcomes = {kernel["name"]: kernel["outcome"] for kernel in json.loads(captured.out)["kernels"]}
    assert list(outcomes) == [title.replace(" ", "_") for title in TITLES]
    assert outcomes.pop("pack_float32") == outcomes.pop("rnn_relu_unpacked_float32") == "compiled"
    assert set(outcomes.values()) == {"not kept"}
    assert captured.err == f"fastrnn: could not be kept in {tmp_path}: {', '.join(outcomes)}\n"


def test_kernels_that_an_image_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are found where they can only be read. Only if one was missing is another directory told."""
    image, own = tmp_path / "image", tmp_path / "own"
    image.mkdir()
    own.mkdir()
    for title in TITLES:
        (image / f"{title.replace(' ', '_')}.py311").touch()
    monkeypatch.setattr(kernel_files, "places", lambda: kernel_files.Places((image, own), own))
    monkeypatch.setattr(kernels, "kernel", lambda *key: None)
    report = warm_up.warm_up([CELL])
    assert (report.directory, {kernel.outcome for kernel in report.kernels}) == (image, {"found"})
    (image / "pack_float32.py311").unlink()
    monkeypatch.setattr(
        kernels, "kernel", lambda cell, task, dtype: task == "pack" and (own / "pack_float32.x").touch()
    )
    report = warm_up.warm_up([CELL])
    assert (report.directory, report.kernels[0].outcome, report.reason) == (own, "compiled", None)


def test_where_numba_cannot_run(tmp_path: Path) -> None:
    done = warmed_up("--json", FASTRNN_CACHE_DIR=str(tmp_path), NUMBA_DISABLE_JIT="1")
    assert done.returncode == 1
    assert done.stderr == "fastrnn: the backend numba cannot run here: NUMBA_DISABLE_JIT forbids Numba to compile\n"
    told = json.loads(done.stdout)
    assert (told["kernels"], told["directory"]) == ([], None)
    assert "NUMBA_DISABLE_JIT" in told["reason"]
    assert not list(tmp_path.iterdir())


def test_every_kernel_once() -> None:
    wanted = list(warm_up.wanted(["lstm", "gru", "lstm"], ["float32", "float64"]))
    assert len(set(wanted)) == len(wanted) == 2 * (len(kernels.SHARED) - 1 + 2 * len(TASKS)) + 1
    assert {(cell, task) for cell, task, _ in wanted if task in kernels.SHARED} == {("", t) for t in kernels.SHARED}
    assert {"forward", "unpacked", "backward"} <= {task for cell, task, _ in wanted if cell == "gru"}
    more = [kernel for kernel in warm_up.wanted(["gru"], ["float64"], streams=True) if kernel not in wanted]
    assert more == [("gru", f"stream_{weights}", "float32") for weights in FORMATS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--warm-up", "--cells", "lstn"], "argument --cells: invalid choice: 'lstn'"),
        (["--warm-up", "--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
        (["--cells", "lstm"], "--cells, --dtype and --streams go with --warm-up"),
        (["--dtype", "float64"], "--cells, --dtype and --streams go with --warm-up"),
    ],
)
def test_what_cannot_be_asked_for(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
