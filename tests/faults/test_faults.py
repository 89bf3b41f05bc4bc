"""The planted faults have their places in the sources as they are, and the runner tells found ones from others."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from tests.faults import __main__ as command
from tests.faults.fault import Fault, Misplaced, planted, planted_text
from tests.faults.planted import FAULTS
from tests.faults.runner import NO_TESTS, NotHealthy, Outcome, Run, judged, search

SEEN = Fault("seen", "toy.py", "return 1", "return 2", "one is two")
UNSEEN = Fault("unseen", "toy.py", "unused = 3", "unused = 4", "nobody looks")


def test_every_fault_has_its_place() -> None:
    root = command.ROOT
    wrong = []
    for fault in FAULTS:
        try:
            assert planted_text(fault, (root / fault.file).read_text()) != (root / fault.file).read_text(), fault.name
        except (Misplaced, OSError) as error:
            wrong.append(str(error))
    assert not wrong


def test_names_are_unique() -> None:
    assert not [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A tree with a module, a test of a part of it, and the plugin that the runner asks for."""
    tree = tmp_path / "toy"
    files = {
        "toy.py": "unused = 3\n\n\ndef one():\n    return 1\n",
        "test_toy.py": "import toy\n\n\ndef test_one():\n    assert toy.one() == 1\n",
        "tests/__init__.py": "",
        "tests/faults/__init__.py": "",
        "tests/faults/record.py": (command.ROOT / "tests" / "faults" / "record.py").read_text(),
    }
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
    return tree


def test_a_fault_is_taken_out_again(toy: Path) -> None:
    with planted(SEEN, toy):
        assert "return 2" in (toy / "toy.py").read_text()
    assert "return 1" in (toy / "toy.py").read_text()
    with pytest.raises(Misplaced, match=r"must stand once in toy\.py, it stands there 0 times"):
        planted_text(SEEN, "return 2")


def test_what_a_test_sees_is_found(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer to import than all else
    told: list[Outcome] = []
    folder = tmp_path / "copies"
    folder.mkdir()
    seen, unseen = search(toy, folder, [SEEN, UNSEEN], ["-p", "no:cacheprovider"], is_healthy=True, told=told.append)
    assert (seen.found, seen.tests, seen.remark) == (True, ["test_toy.py::test_one"], "")
    assert (unseen.found, unseen.tests, unseen.remark) == (False, [], "")
    assert told == [seen, unseen]
    assert "return 1" in (folder / "tree0" / "toy.py").read_text()


def test_tests_that_fail_anyway_find_nothing(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (toy / "toy.py").write_text("def one():\n    return 2\n")
    (tmp_path / "copies").mkdir()
    with pytest.raises(NotHealthy, match="without any fault the tests do not pass"):
        search(toy, tmp_path / "copies", [UNSEEN], ["-p", "no:cacheprovider"])


@pytest.mark.parametrize(
    ("run", "found", "remark"),
    [
        (Run(0, [], [], "", 1.0), False, ""),
        (Run(1, ["a"], [], "", 1.0), True, ""),
        (Run(2, [], ["a"], "", 1.0), True, "tests cannot be collected: a"),
        (Run(-11, [], [], "", 1.0), True, "ended by signal 11"),
        (Run(None, [], [], "", 1.0), True, "still running after 9 s"),
        (Run(NO_TESTS, [], [], "", 1.0), False, "no tests ran"),
        (Run(4, [], [], "", 1.0), False, "pytest's exit status was 4"),
    ],
)
def test_what_a_run_says(run: Run, found: bool, remark: str) -> None:
    assert judged(SEEN, run, 9.0) == Outcome(SEEN, found, run.tests, remark, 1.0)


def test_a_pipe_gets_markdown_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    report = command.Report(Console())
    report.begin()
    report.told(Outcome(SEEN, True, ["test_a.py::test[x|y]", "b"], "", 1.25))
    report.told(Outcome(UNSEEN, False, [], "no tests ran", 0.0))
    report.end([])
    assert capsys.readouterr().out.splitlines() == [
        "| fault | found | by | s |",
        "| --- | --- | --- | --- |",
        "| seen | found | test_a.py::test[x\\|y]; b | 1.2 |",
        "| unseen | NOT FOUND | no tests ran | 0.0 |",
    ]


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = command.parsed([FAULTS[1].name, "--jobs", "2", "--", "-k", "a or b", "--keep-going"])
    assert (options.names, options.jobs, options.keep_going) == ([FAULTS[1].name], 2, False)
    assert options.pytest_arguments == ["-k", "a or b", "--keep-going"]
    for wrong, said in ((["nonsense"], "no such fault: nonsense"), (["--jobs", "0"], "at least 1, got 0")):
        with pytest.raises(SystemExit):
            command.parsed(wrong)
        assert said in capsys.readouterr().err
