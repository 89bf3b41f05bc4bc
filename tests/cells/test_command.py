"""`python -m fastrnn cell`, and the page that shows it."""

from __future__ import annotations

import doctest
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn
from fastrnn import __main__ as command
from fastrnn.cells import lstm
from fastrnn.cells.emit import equations
from fastrnn.cells.emit.backends import EMITTERS
from tests.cells.page import PAGE, library_table, with_outputs
from tests.cells.zoo import ZOO


def test_the_page_shows_what_commands_print() -> None:
    text = PAGE.read_text()
    assert text.count("$ python -m fastrnn cell") == 2 + len(EMITTERS)
    assert library_table() in text
    assert with_outputs(text) == text, "python -m tests.cells.page writes it anew"


def test_the_pages_cells_are_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    with fastrnn.use_backend("reference"):  # the page's cells are not worth compiling
        told = doctest.testfile(str(PAGE), module_relative=False, verbose=False, optionflags=doctest.ELLIPSIS)
    assert told.failed == 0
    assert told.attempted > 20
    (shown,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert Path(lstm.__file__).read_text().endswith(shown)


@pytest.mark.parametrize("name", ZOO)
def test_a_cell_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cell = ZOO[name]
    assert command.main(["cell", f"tests.cells.zoo:{name}"]) == 0
    out = capsys.readouterr().out
    for state in cell.states:
        assert re.search(f"^    {state}' = ", out, re.MULTILINE)
        assert re.search(f"^    d{state}₋ = ", out, re.MULTILINE)
    for block in (*cell.blocks, *cell.outside):
        assert re.search(f"^    d{block} = ", out, re.MULTILINE)
    assert f"may exceed 16 bits      {', '.join(cell.unbounded) or 'none'}\n" in out
    assert "*" not in out
    linear = {"mingru": "step, derivative", "indrnn": "derivative"}.get(name, "none")
    assert f"linear recurrences                {linear}\n" in out


def test_letters_that_a_locale_lacks_have_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii"))
    assert command.main(["cell", "fastrnn.cells.lstm:lstm"]) == 0
    sys.stdout.flush()
    assert b"i = \\u03c3(a_i)" in out.getvalue()


def test_every_operation_reads_as_mathematics() -> None:
    program = ZOO["scaled_residual"].program
    assert program is not None
    assert equations.step(program) == [
        "a_k = x_k + u_k    k = a",
        "a = tanh(a_a)",
        "saved0 = x_b - u_b",
        "b = (softplus(saved0) where floor < h₋, else √(1 + |u_b|))",
        "h' = h₋ + scale a / (1 + b)",
    ]
    assert equations.outside(program) == ["dfloor = 0"]
    program = ZOO["slstm"].program
    assert program is not None
    assert "m' = stop(max(log_f, a_i))" in equations.step(program)
    assert "t1 = (dlog_f where 0 < n₋, else 0)" in equations.derivative(program)


@pytest.mark.parametrize("backend", EMITTERS)
def test_sources(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["cell", "tests.cells.zoo:mgu", "--source", backend]) == 0
    program = ZOO["mgu"].program
    assert program is not None
    assert capsys.readouterr().out == EMITTERS[backend].text(program)


@pytest.mark.parametrize(
    "case",
    [
        ("lstm", "lstm: a cell is named by its module and its name there, as in fastrnn.cells.lstm:lstm"),
        (
            ".c:lstm",
            ".c:lstm: a cell is named by its module and its name there, as in fastrnn.cells.lstm:lstm",
        ),
        ("nowhere:lstm", "there is no module nowhere"),
        ("tests.nowhere:lstm", "there is no module tests.nowhere"),
        ("json:lstm", "json has no lstm; its cells: none"),
        ("fastrnn.cells.rnn:rnn", "fastrnn.cells.rnn has no rnn; its cells: rnn_tanh, rnn_relu"),
        ("json:loads", "json:loads is no cell but a function: `fastrnn.cell` makes one of a function"),
        (
            "fastrnn.cells.built_in:LSTM",
            "fastrnn.cells.built_in:LSTM has no equations: its function has, in a module of fastrnn.cells",
        ),
        (
            "broken:cell",
            "cell: no gate has a share of the input: a cell must use x\n  broken.py, line 3: def cell(x, h):",
        ),
    ],
    ids=lambda case: case[0],
)
def test_what_cannot_be_shown(
    case: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import fastrnn\n@fastrnn.cell\ndef cell(x, h):\n    return h\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as caught:
        command.main(["cell", case[0]])
    assert caught.value.code == 2
    assert capsys.readouterr().err.replace(f"{tmp_path}/", "").endswith(f"error: {case[1]}\n")


def test_what_a_module_lacks_is_told_by_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lacking.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        command.main(["cell", "lacking:cell"])
    assert "lacking" not in sys.modules


def test_a_reader_may_have_seen_enough() -> None:
    command_line = [sys.executable, "-m", "fastrnn", "cell", "fastrnn.cells.library:slstm"]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_mean_has_no_source_for_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["cell", "fastrnn.cells.library:layer_norm_lstm", "--source", "cuda"])
    assert "there is none: CUDA's kernels take no mean over units, as layer_norm_lstm does" in capsys.readouterr().err
