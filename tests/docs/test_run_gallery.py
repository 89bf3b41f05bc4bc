"""docs/run_gallery.py: what it writes down of programs, and which it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkout import ROOT
from tests.examples.programs import load_script

run_gallery = load_script(ROOT / "docs" / "run_gallery.py")
DRAWS = """
import sys
from pathlib import Path
picture = Path(sys.argv[sys.argv.index("--picture") + 1])
picture.write_bytes(b"x" * 10)
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a program of this text, and gives the status and what was written down."""
    for name, place in (("EXAMPLES", "examples"), ("PICTURES", "pictures/gallery"), ("RESULTS", "results.json")):
        monkeypatch.setattr(run_gallery, name, tmp_path / place)

    def run(text: str) -> tuple[int, dict[str, Any]]:
        (tmp_path / "examples").mkdir(exist_ok=True)
        (tmp_path / "examples" / "program.py").write_text(DRAWS + text)
        status = run_gallery.main(["program"])
        results = tmp_path / "results.json"
        return status, json.loads(results.read_text()) if results.exists() else {}

    return run


def test_what_is_written_down(written: Any, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"another": {}}')
    status, results = written("print('a table'); print('Working ━━━━ 100%'); print('It learns 95 %.')")
    assert status == 0
    assert set(results) == {"another", "program"}
    assert results["program"]["printed"] == ["a table", "It learns 95 %."]
    assert results["program"]["line"] == "It learns 95 %."
    assert 0 <= results["program"]["cpu_seconds"] < 60
    assert {"torch", "Python"} <= set(results["program"]["versions"])
    assert (tmp_path / "pictures" / "gallery" / "program.png").read_bytes() == b"x" * 10


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("import time; print(f'It learns {time.time_ns()} %.')", "two runs end differently"),
        ("raise SystemExit('no data')", "ended with status 1:\nno data"),
        ("picture.unlink(); print('done')", "left no picture"),
        ("picture.write_bytes(b'x' * 100_000); print('done')", "its picture has 100000 bytes"),
        ("", "printed nothing"),
    ],
)
def test_what_is_refused(written: Any, text: str, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, results = written(text)
    assert (status, results) == (1, {})
    assert f"program: {fault}" in capsys.readouterr().out


def test_a_late_program_is_refused(
    written: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_gallery, "SECONDS", 0)
    assert written("print('It learns 95 %.')") == (1, {})
    assert "s, and may take 0" in capsys.readouterr().out


def test_times_may_differ() -> None:
    lines = [f"It learns 95 % in {time}, {ratio} times as fast." for time, ratio in (("3.5 s", "2"), ("12 s", "1.9"))]
    assert run_gallery.without_times(lines[0]) == run_gallery.without_times(lines[1])
    assert run_gallery.without_times("95 %") != run_gallery.without_times("94 %")


def test_a_program_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_gallery.main(["nothing"])
    assert "there is no examples/nothing.py" in capsys.readouterr().err
